"""Commands that run in several processes, one for each GPU, and the progress bar of the first one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trt_cls.engines.backends import ON_CPU, device_of
from trt_cls.errors import RequestError
from trt_cls.isolation import MAIN_CODE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_cls.cli.options import RunOptions
    from trt_cls.distributed.processes import Processes
    from trt_cls.engines.backends import Provider
    from trt_cls.engines.engine import Engine


def run_on_each_gpu(context: click.Context, gpus: int, option: str, value: str) -> NoReturn:
    """Runs this command line in `gpus` processes, and exits with their status.

    `option` is the flag that selects the device or provider, `value` its value.

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

    arguments = _arguments_of_each(context.find_root().obj.arguments)
    require_gpus(gpus, f"work in processes on the CPU: {on_cpus}")
    raise SystemExit(run_in_processes(gpus, ["-c", MAIN_CODE, *arguments]))


def take_gpu_for(processes: Processes, model: Path, provider: Provider) -> None:
    """Assigns one GPU to this process if the model may run on one; call it before CUDA is initialized.

    Raises:
        DeviceError: there are more processes on this machine than GPUs.
    """
    device = device_of(model, provider)
    if device != "cpu":
        from trt_cls.distributed.launch import take_gpu

        otherwise = "use --provider cpu, which runs ONNX files and checkpoints"
        take_gpu(processes, required=device == "gpu", otherwise=otherwise)


def fastest_engine(
    model: Path,
    provider: Provider,
    threads: int | None,
    images: Callable[[], NDArray[Any] | None],
    say: Callable[[str], None],
) -> Engine:
    """`open_engine`; an INT8 file with "auto" is opened by `export.int8_on_cpu`, which nothing else loads."""
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.engines import open_engine

    if provider == "auto" and model.suffix == ".onnx" and read_contract(model).precision == "int8":
        from trt_cls.export.int8_on_cpu import open_fastest

        return open_fastest(model, threads, images, say)
    return open_engine(model, provider, threads)


@contextmanager
def with_progress(
    engine: Engine, images: Sequence[Any], run: RunOptions, batch_size: int, processes: Processes
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """The `engine` of this process, and the options of `predict`, with a progress bar in the first process."""
    bar = progress(len(processes.share(images, batch_size))) if processes.first else nullcontext(lambda images: None)
    with closing(engine), bar as done:
        options = {"batch_size": batch_size, "executor": run.executor, "progress": done, "processes": processes}
        yield engine, options


def _arguments_of_each(arguments: Sequence[str]) -> list[str]:
    """The arguments as typed, without `--gpus N` and the ignored `-k KEY`."""
    kept, words = [], iter(arguments)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in ("--gpus", "-k", "--key"):
            kept.append(word)
        elif not equals:
            next(words, "")
    return kept


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal; yields a function that takes the number of images just done.

    `total` is None if it is unknown.
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
