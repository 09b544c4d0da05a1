"""Starts a Python program once for each GPU of this machine, as torchrun does, and ends all of them when one fails.

One GPU for each process of a machine.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from trt_cls.distributed.processes import Processes, torch_for_processes
from trt_cls.errors import DeviceError


def run_in_processes(count: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` in `count` processes that find each other, and returns their exit status.

    They have this process's input and output, and say themselves why they fail.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    given: dict[str, Any] = {}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and hasattr(LaunchConfig, "signals_to_handle"):
        given["signals_to_handle"] = "SIGTERM,SIGINT,SIGQUIT"  # under nohup; torch would end all at a SIGHUP
    logging.disable(logging.ERROR)  # torch's launcher repeats the end of each process; its loggers have own levels
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        logs_specs=DefaultLogsSpecs(),
        run_id=uuid.uuid4().hex,
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
    """Makes sure that `count` GPUs are there; `otherwise` says how to do without.

    Raises:
        DeviceError: they are not.
        MissingDependency: torch is not installed.
    """
    found = gpus_found()
    if count > found:
        raise DeviceError(f"--gpus {count}: torch finds {found} GPUs; expected {count}; ask for fewer, or {otherwise}")


def take_gpu(processes: Processes, *, required: bool, otherwise: str) -> None:
    """Leaves this process one GPU of its own, of those that CUDA_VISIBLE_DEVICES leaves all of them.

    Whatever asks for a GPU afterwards gets that one; nothing of CUDA may have been initialised before. A machine
    without GPUs stays as it is, unless they are `required`. A single process keeps all.

    Raises:
        DeviceError: there are more processes on this machine than GPUs; `otherwise` says how to do without.
    """
    if processes.size == 1:
        return
    found = gpus_found()
    if not found and not required:
        return
    if processes.per_machine > found:
        raise DeviceError(
            f"{processes.per_machine} processes on this machine, where torch finds {found} GPUs; expected one for "
            f"each; start no more than there are, or {otherwise}"
        )
    names = os.environ.get(VISIBLE)
    every = names.split(",") if names is not None else [str(number) for number in range(found)]
    os.environ[VISIBLE] = every[processes.rank_on_machine].strip()


def gpus_found() -> int:
    """How many GPUs this process sees, counted without initialising CUDA where the driver's NVML is there."""
    count: int = torch_for_processes().cuda.device_count()
    return count
