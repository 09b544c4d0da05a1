"""The GPU that this process sees, and pycuda to drive it.

The driver itself is asked, so that no framework has to be installed.
"""

from __future__ import annotations

import atexit
import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from traceback import clear_frames
from types import ModuleType
from typing import Any
from weakref import WeakSet

from trt_cls.errors import DeviceError, MissingDependency, TrtClsError, one_line

# From cuda.h.
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
NAME_LENGTH = 256
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: a stream that does not wait for the default one, on which torch computes."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    compute_capability: str
    """As in "8.7"."""


def visible_gpu() -> Gpu | None:
    """The first GPU, which is the one that TensorRT uses; None without a driver or a GPU."""
    try:
        driver = driver_library()
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_LENGTH)
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, NAME_LENGTH, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")


def driver_library() -> ctypes.CDLL:
    """The driver's own C functions.

    Raises:
        OSError: there is no driver.
    """
    return ctypes.CDLL("libcuda.so.1")


def require_gpu(otherwise: str) -> None:
    """Refuses to go on without a GPU, whatever else is missing too; `otherwise` says what can be done.

    Raises:
        DeviceError: there is no GPU or no driver.
    """
    if visible_gpu() is None:
        raise DeviceError(f"no NVIDIA GPU can be used here; expected one with its driver; {otherwise}")


def cuda_driver(purpose: str, otherwise: str) -> ModuleType:
    """Pycuda's driver interface, ready to use.

    Raises:
        MissingDependency: pycuda is not installed; `purpose` says what for.
        DeviceError: there is no GPU or no driver; `otherwise` says what can be done without.
    """
    if find_spec("pycuda") is None:
        require_gpu(otherwise)
        raise MissingDependency("pycuda", purpose, "gpu")
    try:
        driver = import_module("pycuda.driver")
        driver.init()
    except Exception as error:  # ImportError without a driver library, pycuda's own errors without a device
        raise DeviceError(
            f"no NVIDIA GPU can be used here ({one_line(error)}); expected one with its driver; {otherwise}"
        ) from error
    return driver


class GpuOwner(ABC):
    """What holds memory on a GPU until it is closed, forgotten in any thread, or the process ends."""

    @abstractmethod
    def close(self) -> None:
        """Releases it; a second call does nothing."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Makes the primary context this thread's; an error once it is closed."""

    def __del__(self) -> None:
        # pycuda's own objects give nothing back in another thread, unless the context is current there.
        with suppress(Exception), self.current():  # closed, or so far from open that it holds nothing
            try:
                self.close()
            finally:
                vars(self).clear()  # an owner that opened halfway does not close


_open: WeakSet[GpuOwner] = WeakSet()
_retaining = Lock()


def primary_context(cuda: ModuleType, device: int) -> Any:
    """The primary context of the GPU with the number `device`, which torch, TensorRT and our kernels share.

    One for the process, held until it ends: pycuda leaves a context on the thread's stack where it gives one back, and
    gives back none in another thread.

    Raises:
        DeviceError: there is no such GPU, or it can't be had.
    """
    with _retaining:
        return _retained(cuda, device)


@cache
def _retained(cuda: ModuleType, device: int) -> Any:
    try:
        primary = cuda.Device(device).retain_primary_context()
    except cuda.Error as error:
        raise DeviceError(
            f"GPU {device} can't be used here: CUDA failed: {one_line(error)}; expected a GPU with free memory that no "
            "other process has to itself; choose another with CUDA_VISIBLE_DEVICES, or use the CPU"
        ) from error
    atexit.register(_end, primary)
    return primary


def close_at_exit(owner: GpuOwner) -> None:
    """Closes `owner` before the primary context is released, unless it was closed before."""
    _open.add(owner)


def _end(primary: Any) -> None:
    for owner in list(_open):
        with suppress(Exception):  # the process ends: an error would help no one
            owner.close()
    primary.detach()


@contextmanager
def current_context(cuda: ModuleType, primary: Any, failure: type[TrtClsError], what: str) -> Iterator[None]:
    """`primary`, the context that torch, TensorRT and our kernels share, on top of this thread's stack.

    Raises:
        failure: in place of CUDA's own errors; `what` begins its message.
    """
    try:
        primary.push()
        try:
            yield
        except BaseException as error:
            clear_frames(error.__traceback__)  # what a call that failed had made is given back while it is current
            raise
        finally:
            cuda.Context.pop()
    except cuda.Error as error:
        raise failure(f"{what}: CUDA failed: {one_line(error)}") from error
