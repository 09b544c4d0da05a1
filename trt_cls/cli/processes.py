"""Commands that several processes run together: one started for each GPU, one that speaks for all.

A bar on the terminal for work that takes a while; nothing where nobody looks on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trt_cls.cli.options import Decorator
from trt_cls.engines.backends import ON_CPU, device_of
from trt_cls.errors import RequestError
from trt_cls.isolation import PROGRAM

if TYPE_CHECKING:
    from trt_cls.distributed.processes import Processes
    from trt_cls.engines.backends import Provider


def gpus_option(description: str) -> Decorator:
    """`--gpus N` as `gpus`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return click.option(
            "--gpus",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help=f"GPUs of this machine to {description}",
        )(function)

    return decorate


def run_on_each_gpu(context: click.Context, gpus: int, option: str, value: str) -> NoReturn:
    """Runs the command that was typed in `gpus` processes, and exits as they do.

    `option` is the one that keeps the command off GPUs by the values ON_CPU, and `value` what it has.

    Raises:
        DeviceError: there are not that many GPUs.
        MissingDependency: torch is not installed.
        RequestError: a CPU was asked for.
    """
    on_cpus = f"torchrun --nproc-per-node {gpus} -m trt_cls {context.command.name} … {option} cpu"
    if value in ON_CPU:
        raise RequestError(
            f"--gpus {gpus} with {option} {value}; expected one of the two; several processes on CPUs are {on_cpus}"
        )
    from trt_cls.distributed.launch import require_gpus, run_in_processes

    require_gpus(gpus, f"work in processes on the CPU: {on_cpus}")
    raise SystemExit(run_in_processes(gpus, _arguments_of_each(context)))


def take_gpu_for(processes: Processes, model: Path, provider: Provider) -> None:
    """Leaves this process one GPU if its model may run on one; before anything of CUDA is initialised.

    Raises:
        DeviceError: there are more processes on this machine than GPUs.
    """
    from trt_cls.distributed.launch import take_gpu

    device = device_of(model, provider)
    if device != "cpu":
        otherwise = "use --provider cpu, which runs ONNX files and checkpoints"
        take_gpu(processes, required=device == "gpu", otherwise=otherwise)


def watched(
    processes: Processes, images: Sequence[Any], batch_size: int
) -> AbstractContextManager[Callable[[int], None]]:
    """The progress of the first process's share, which is as large as any; nothing in the others."""
    if not processes.first:
        return nullcontext(lambda images: None)
    return progress(len(processes.share(images, batch_size)))


def _arguments_of_each(context: click.Context) -> list[str]:
    """The call as it was typed, for Python to run it in one of its processes."""
    arguments = ["-c", PROGRAM, str(context.command.name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name == "gpus" or value is None or value is False:
            continue
        flag = max(parameter.opts, key=len)
        if value is True:
            arguments.append(flag)
        else:
            arguments += [f"{flag}={each}" for each in (value if parameter.multiple else [value])]
    return [*arguments, "-v"] if context.find_root().obj.verbose else arguments


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many images were done since it was last told; `total` None: nobody knows.

    The bar stands on stderr, where that is a terminal, and goes when the work is done.
    """
    if not sys.stderr.isatty():
        yield lambda images: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda images: bar.advance(task, images)
