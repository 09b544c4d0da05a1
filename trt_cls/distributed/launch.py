"""Starts a Python program once for each GPU of this machine, as torchrun does, and gives each process one GPU."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from trt_cls.distributed.processes import Processes, torch_for_processes
from trt_cls.errors import DeviceError


def run_in_processes(count: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` in `count` processes of one torch group, and returns their exit status.

    They inherit input and output, and report their errors themselves.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    given: dict[str, Any] = {}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and hasattr(LaunchConfig, "signals_to_handle"):
        given["signals_to_handle"] = "SIGTERM,SIGINT,SIGQUIT"  # under nohup; torch would end all processes at a SIGHUP
    logging.disable(logging.ERROR)  # torch's launcher logs the end of each process again, with its own levels
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        logs_specs=DefaultLogsSpecs(),
        run_id=os.urandom(16).hex(),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **given,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return 130
    return 0


VISIBLE = "CUDA_VISIBLE_DEVICES"


def require_gpus(count: int, otherwise: str) -> None:
    """Checks that there are `count` GPUs; `otherwise` is the alternative in the message.

    Raises:
        DeviceError: there are fewer.
        MissingDependency: torch is not installed.
    """
    found = gpus_found()
    if count > found:
        raise DeviceError(f"--gpus {count}: torch finds {found} GPUs; expected {count}; ask for fewer, or {otherwise}")


def take_gpu(processes: Processes, *, required: bool, otherwise: str) -> None:
    """Gives this process one of the visible GPUs, by CUDA_VISIBLE_DEVICES; call it before CUDA is initialized.

    A machine without GPUs is an error only if they are `required`. A single process keeps all GPUs.

    Raises:
        DeviceError: there are more processes on this machine than GPUs; `otherwise` is the alternative in the message.
    """
    if processes.size == 1:
        return
    found = gpus_found()
    if not found and not required:
        return
    if processes.per_machine > found:
        raise DeviceError(
            f"{processes.per_machine} processes on this machine, where torch finds {found} GPUs; expected one for "
            f"each; start fewer, or {otherwise}"
        )
    names = os.environ.get(VISIBLE)
    every = names.split(",") if names is not None else [str(number) for number in range(found)]
    os.environ[VISIBLE] = every[processes.rank_on_machine].strip()


def gpus_found() -> int:
    """The number of visible GPUs, counted without initializing CUDA if the driver's NVML is available."""
    count: int = torch_for_processes().cuda.device_count()
    return count
