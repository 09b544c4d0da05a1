"""TensorRT and TensorRT-RTX plans on the GPU, through pycuda's primary context: engine, buffers and CUDA graphs.

A `Slot` holds stream and buffers of a batch; two slots let the copy of one overlap with another's network. A CUDA graph
is work that was queued on a stream once, to be queued again with a single call; pycuda has no names for graphs, so the
driver's own functions are called. Does not know: TensorRT's API (`api`), and how a plan is built (`export.tensorrt`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.sidecar import read_sidecar
from trt_cls.contract import INPUT, OUTPUT, Contract
from trt_cls.engines.backends import Provider
from trt_cls.engines.engine import check_images, check_signature, closed
from trt_cls.engines.sidecar import read_plan, require_architecture, require_version
from trt_cls.engines.tensorrt.api import Plan, import_runtime
from trt_cls.errors import EngineError
from trt_cls.gpu import (
    NON_BLOCKING,
    Gpu,
    GpuOwner,
    close_at_exit,
    cuda_driver,
    current_context,
    driver_library,
    primary_context,
    visible_gpu,
)


class Slot:
    """A stream, an execution context, and buffers for the largest batch; the primary context must be current.

    Whoever fills `input` does so on `stream`, then calls `run`, then `answers` before the slot is used again.
    """

    def __init__(self, cuda: ModuleType, plan: Plan, contract: Contract) -> None:
        self._plan = plan
        self._shape = contract.preprocessing.input_shape
        self._cuda = cuda
        # The default stream may not be used while a stream that it waits for captures, which another slot's may do.
        self.stream = cuda.Stream(NON_BLOCKING)
        self._run = plan.new_run()
        size = plan.largest * int(np.prod(self._shape)) * 4
        self.input: Any = cuda.mem_alloc(size)
        """The network's input in GPU memory, float32 [largest,C,H,W]."""
        # A batch below the profile's smallest runs with what is left here behind it: numbers, not chance.
        cuda.memset_d8_async(self.input, 0, size, self.stream)
        self.stream.synchronize()  # what follows may fail, and free it
        self._answers: NDArray[np.float32] = cuda.pagelocked_empty((plan.largest, len(contract.classes)), np.float32)
        self._output = cuda.mem_alloc(self._answers.nbytes)
        self._run.bind(INPUT, int(self.input))
        self._run.bind(OUTPUT, int(self._output))
        self._batch = 0
        self._graph: CudaGraph | None = None
        self._capturable = plan.graphs and not plan.captures_itself

    def run(self, count: int) -> None:
        """Queues the network on the first `count` images of the input, and the copy of their answers to the host.

        All probabilities come back, which loss and calibration need: 4 bytes per class and image, 1 MB for 256 images
        of 1,000 classes, 0.7 % of the bytes of 256 decoded photographs of 500×375.
        """
        batch = max(count, self._plan.smallest)
        if self._graph is not None and batch == self._batch:
            self._graph.launch(self.stream.handle)
        else:
            self._run_plainly(batch)
        self._cuda.memcpy_dtoh_async(self._answers[:count], self._output, self.stream)

    def answers(self, count: int) -> NDArray[np.float32]:
        """The probabilities [count, classes] of the last run, once all that was queued is done."""
        self.stream.synchronize()
        return self._answers[:count].copy()

    def close(self) -> None:
        """Waits for queued work, then frees everything."""
        self.stream.synchronize()
        self._drop_graph()
        del self._run, self.input, self._output, self._answers, self.stream

    def _run_plainly(self, batch: int) -> None:
        """Also captures the run where the shape is that of the last one, and so likely to be that of the next.

        TensorRT leaves undefined what a graph does once its execution context has another shape, so there is one at a
        time; and the context must have run once with the shape before.
        """
        repeated = batch == self._batch
        if not repeated:
            self._drop_graph()
            self._run.set_input_shape((batch, *self._shape))
            self._batch = batch
        self._run.enqueue(self.stream.handle)
        if repeated and self._capturable:
            self.stream.synchronize()
            self._graph = capture(driver_library(), self.stream.handle, self._run.enqueue)
            self._capturable = self._graph is not None  # it is not tried again

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.stream.synchronize()
            self._graph.close()
            self._graph = None


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


class TensorRtEngine(GpuOwner):
    """A plan, and a slot that `infer` runs it in; `graphs` captures runs of one shape as CUDA graphs.

    Raises:
        ArtefactError: the plan is not what its sidecar describes, or was built for another GPU or TensorRT.
        DeviceError, MissingDependency: the GPU, pycuda or TensorRT is not here.
        EngineError: TensorRT can't load the plan.
    """

    def __init__(
        self, path: Path, provider: Provider = "tensorrt", threads: int | None = None, *, graphs: bool = True
    ) -> None:
        sidecar = read_sidecar(path)
        data = read_plan(path, sidecar)
        self.contract = sidecar.contract
        self.backend: str = sidecar.builder
        otherwise = f"name the ONNX file that it was built from, -m {path.with_name(sidecar.onnx)}"
        trt = import_runtime(sidecar.builder, otherwise=otherwise)
        version = str(trt.__version__)
        require_version(path, sidecar, version, visible_gpu())
        self._cuda = cuda_driver("running a TensorRT engine", otherwise)
        device = self._cuda.Device(0)
        gpu = Gpu(device.name(), "{}.{}".format(*device.compute_capability()))
        require_architecture(path, sidecar, version, gpu)
        self._closed = False
        self._primary = primary_context(self._cuda, 0)
        with self.current():
            self._plan = Plan(trt, path, data, sidecar, gpu, graphs=graphs)
            check_signature(path, self.contract, self._plan.inputs, self._plan.outputs)
            self._slot = self.new_slot()
            shape = self.largest, *self.contract.preprocessing.input_shape
            element = self.contract.preprocessing.input_type
            self._images: NDArray[np.float32] = self._cuda.pagelocked_empty(shape, element)
        close_at_exit(self)

    @property
    def largest(self) -> int:
        """The largest batch that runs at once."""
        return self._plan.largest

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`; batches larger than the profile's are split."""
        check_images(images, self.contract)
        with self.current():
            return np.concatenate(
                [self._answers(images[start : start + self.largest]) for start in range(0, len(images), self.largest)]
            )

    def new_slot(self) -> Slot:
        """A slot beside the engine's own, to be closed before the engine is; the context must be current."""
        return Slot(self._cuda, self._plan, self.contract)

    def current(self) -> AbstractContextManager[None]:
        """Makes the engine's CUDA context this thread's; turns CUDA's errors into an EngineError.

        Raises:
            EngineError: the engine is closed.
        """
        if self._closed:
            raise closed(self.backend)
        return current_context(self._cuda, self._primary, EngineError, self.backend)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._closed:
            return
        with self.current():
            self._closed = True
            self._slot.close()
            del self._slot, self._plan, self._images

    def _answers(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        count = len(batch)
        self._images[:count] = batch
        self._cuda.memcpy_htod_async(self._slot.input, self._images[:count], self._slot.stream)
        self._slot.run(count)
        return self._slot.answers(count)
