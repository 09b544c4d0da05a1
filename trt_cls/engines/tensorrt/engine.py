"""TensorRT and TensorRT-RTX plans on the GPU, through pycuda's primary context.

Calls of TensorRT stand in `api`, buffers in `buffers`. Does not know: how a plan is built (`export.tensorrt`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.sidecar import read_sidecar
from trt_cls.engines.backends import Provider
from trt_cls.engines.engine import check_images, check_signature, closed
from trt_cls.engines.sidecar import read_plan, require_architecture, require_version
from trt_cls.engines.tensorrt.api import Plan, import_runtime
from trt_cls.engines.tensorrt.buffers import Slot
from trt_cls.errors import EngineError
from trt_cls.gpu import Gpu, GpuOwner, close_at_exit, cuda_driver, current_context, primary_context, visible_gpu


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
        trt = import_runtime(sidecar.builder)
        version = str(trt.__version__)
        require_version(path, sidecar, version, visible_gpu())
        self._cuda = cuda_driver(
            "running a TensorRT engine", "run the ONNX file that it was built from with --provider cpu"
        )
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
