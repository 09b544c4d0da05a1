"""One GPU for each process of a machine."""

from __future__ import annotations

import os

from trt_cls.distributed.processes import Processes, torch_for_processes
from trt_cls.errors import DeviceError

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
