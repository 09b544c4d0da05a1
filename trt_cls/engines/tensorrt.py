"""TensorRT and TensorRT-RTX plans on the GPU, through pycuda's primary context.

The two runtimes, TensorRT 10 and 11 alike, share the names that are used here: tensors by name and `execute_async_v3`.
They differ in the module to import, see `RUNTIMES`. What is not known here: how a plan is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.engines.engine import INPUT, OUTPUT, check_images, check_signature
from trt_cls.engines.sidecar import Builder, Sidecar, read_plan, read_sidecar
from trt_cls.errors import EngineError, MissingDependency
from trt_cls.gpu import cuda_driver, current_context

RUNTIMES: dict[Builder, tuple[str, str]] = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
"""Builder → Python module, extra that installs it."""


class TensorRtEngine:
    """A plan with buffers for its largest batch; larger batches are split, smaller ones padded."""

    def __init__(self, path: Path) -> None:
        sidecar = read_sidecar(path)
        plan = read_plan(path, sidecar)
        self.contract = sidecar.contract
        self.backend: str = sidecar.builder
        self._trt = _import_runtime(sidecar.builder)
        self._cuda = cuda_driver(
            "running a TensorRT engine", "run the ONNX file that it was built from with --provider cpu"
        )
        self._device = self._cuda.Device(0)
        self._primary = self._device.retain_primary_context()
        with self._current():
            self._open(path, plan, sidecar)

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        check_images(images, self.contract)
        with self._current():
            parts = [self._run(batch)[:count] for batch, count in split(images, self._smallest, self._largest)]
        return np.concatenate(parts)

    def close(self) -> None:
        """See `Engine.close`."""
        with self._current():
            del self._context, self._engine, self._runtime, self._stream
            del self._device_in, self._device_out, self._host_in, self._host_out
        self._primary.detach()

    def _current(self) -> AbstractContextManager[None]:
        return current_context(self._cuda, self._primary, EngineError, self.backend)

    def _open(self, path: Path, plan: bytes, sidecar: Sidecar) -> None:
        self._logger = make_logger(self._trt)
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # what the bindings raise for a null pointer
            raise EngineError(f"{self.backend}: its runtime did not start: {self._said()}") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(self._not_loadable(path, sidecar))
        self._context = self._check(self._engine.create_execution_context(), "creating an execution context")
        check_signature(path, self.contract, self._shapes("INPUT"), self._shapes("OUTPUT"))
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT, 0)
        self._smallest, self._largest = int(smallest[0]), int(largest[0])
        self._stream = self._cuda.Stream()
        self._host_in, self._device_in = self._buffers(INPUT, self.contract.preprocessing.input_shape)
        self._host_out, self._device_out = self._buffers(OUTPUT, (len(self.contract.classes),))

    def _shapes(self, mode: str) -> dict[str, list[int]]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        wanted = getattr(self._trt.TensorIOMode, mode)
        return {
            name: list(self._engine.get_tensor_shape(name))[1:]
            for name in names
            if self._engine.get_tensor_mode(name) == wanted
        }

    def _buffers(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], Any]:
        """Page-locked host memory and device memory for the largest batch; the latter is bound to the tensor `name`."""
        if self._engine.get_tensor_dtype(name) != self._trt.float32:
            raise EngineError(f"{self.backend}: its tensor {name} is not float32; export and build the engine again")
        host: NDArray[np.float32] = self._cuda.pagelocked_empty((self._largest, *shape), np.float32)
        device = self._cuda.mem_alloc(host.nbytes)
        self._check(self._context.set_tensor_address(name, int(device)), f"binding {name}")
        return host, device

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        count = len(batch)
        self._host_in[:count] = batch
        self._check(self._context.set_input_shape(INPUT, batch.shape), f"a batch of {count}")
        self._cuda.memcpy_htod_async(self._device_in, self._host_in[:count], self._stream)
        self._check(self._context.execute_async_v3(self._stream.handle), f"running a batch of {count}")
        self._cuda.memcpy_dtoh_async(self._host_out[:count], self._device_out, self._stream)
        self._stream.synchronize()
        return self._host_out[:count].copy()

    def _check(self, result: Any, action: str) -> Any:
        """`result`, unless it is one of the values by which TensorRT, which raises nothing, says that it failed."""
        if result is None or result is False:
            raise EngineError(f"{self.backend}: {action} failed: {self._said()}")
        return result

    def _said(self) -> str:
        return " ".join("; ".join(self._logger.errors).split()) or "TensorRT gave no reason"

    def _not_loadable(self, path: Path, sidecar: Sidecar) -> str:
        here = ".".join(str(number) for number in self._device.compute_capability())
        return (
            f"{path}: {sidecar.builder} {self._trt.__version__} on {self._device.name()} (compute capability {here}) "
            f"can't load it: {self._said()}; expected {sidecar.builder} {sidecar.builder_version} and "
            f"compute capability {' or '.join(sidecar.compute_capabilities)}; build it again here from {sidecar.onnx}"
        )


def split(images: NDArray[np.float32], smallest: int, largest: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Batches that a profile takes, each with the number of its images that count; the rest is padding with zeros."""
    for start in range(0, len(images), largest):
        batch = images[start : start + largest]
        padding = max(smallest - len(batch), 0)
        if padding:
            yield np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0))), len(batch)
        else:
            yield batch, len(batch)


def make_logger(trt: ModuleType) -> Any:
    """A TensorRT logger that keeps errors in its list `errors` in place of printing them."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Logger()


def _import_runtime(builder: Builder) -> ModuleType:
    name, extra = RUNTIMES[builder]
    try:
        module = import_module(name)
    except ImportError as error:
        raise MissingDependency(name, f"running an engine built by {builder}", extra) from error
    if not hasattr(module, "Runtime"):  # a folder of type stubs passes for the package
        raise MissingDependency(name, f"running an engine built by {builder}", extra)
    return module
