"""CUDA graphs: work that was queued on a stream once, to be queued again with a single call.

Through the driver itself, as pycuda has no names for them. What is not known here: what the work is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from trt_cls.errors import EngineError

THREAD_LOCAL = 1
"""From cuda.h: while one thread captures, the others may allocate memory."""


class CudaGraph:
    """A captured graph; give it back with `close`."""

    def __init__(self, driver: Any, executable: ctypes.c_void_p) -> None:
        self._driver = driver
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Queues the work on the stream with the handle `stream`."""
        if error := self._driver.cuGraphLaunch(self._executable, ctypes.c_void_p(stream)):
            raise EngineError(f"launching a CUDA graph failed with CUDA error {error}; report it with the model")

    def close(self) -> None:
        """Frees it; it must not be at work."""
        self._driver.cuGraphExecDestroy(self._executable)


def capture(driver: Any, stream: int, enqueue: Callable[[int], None]) -> CudaGraph | None:
    """What `enqueue` queues on the stream with the handle `stream`, not run but captured.

    None where that can't be done. `driver` is the library that `gpu.driver_library` returns.
    """
    graph, executable, handle = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(stream)
    if driver.cuStreamBeginCapture_v2(handle, THREAD_LOCAL):
        return None
    queued = True
    try:
        enqueue(stream)
    except EngineError:  # a network with a layer that can't be captured
        queued = False
    # Also after a failure: the stream would go on capturing what follows.
    ended = driver.cuStreamEndCapture(handle, ctypes.byref(graph))
    if ended or not graph:
        return None
    made = queued and driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)) == 0
    driver.cuGraphDestroy(graph)
    return CudaGraph(driver, executable) if made else None
