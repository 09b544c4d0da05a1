"""The calls that run a plan with TensorRT 10, TensorRT 11 and TensorRT-RTX, and all in which they differ.

All three share tensors by name and `execute_async_v3`. TensorRT-RTX has a module of its own, and captures CUDA graphs
itself. None of them raises: each return value is checked here. Does not know: memory, streams, images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from trt_cls.artefacts.sidecar import BuilderName, Sidecar
from trt_cls.contract import INPUT
from trt_cls.engines.sidecar import not_for_this_machine
from trt_cls.errors import EngineError, MissingDependency, require
from trt_cls.gpu import Gpu, require_gpu

RUNTIMES: dict[BuilderName, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
"""Builder → Python module, extra that installs it."""


class Plan:
    """A plan in GPU memory, ready to be run by several execution contexts.

    `graphs` says whether runs of one shape are to be recorded as CUDA graphs, and `captures_itself` that TensorRT does
    so on its own: TensorRT-RTX compiles kernels for a shape in the background and knows when they are ready.

    Raises:
        EngineError: TensorRT can't load it.
    """

    def __init__(self, trt: Any, path: Path, data: bytes, sidecar: Sidecar, gpu: Gpu, *, graphs: bool) -> None:
        self.backend: str = sidecar.builder
        self.captures_itself = sidecar.builder == "tensorrt-rtx"
        self.graphs = graphs
        self._trt = trt
        self._logger = make_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except TypeError as error:  # what the bindings raise for a null pointer
            raise EngineError(f"{self.backend}: its runtime did not start: {self._said()}") from error
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(not_for_this_machine(path, sidecar, str(trt.__version__), gpu, self._said()))
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT, 0)
        self.smallest, self.largest = int(smallest[0]), int(largest[0])

    @property
    def inputs(self) -> dict[str, list[int]]:
        """Shapes without the batch, by name."""
        return self._shapes(self._trt.TensorIOMode.INPUT)

    @property
    def outputs(self) -> dict[str, list[int]]:
        """Shapes without the batch, by name."""
        return self._shapes(self._trt.TensorIOMode.OUTPUT)

    def new_run(self) -> Run:
        """An execution context, with activation memory of its own: two of them may work at once."""
        if self.graphs and self.backend == "tensorrt-rtx":
            runtime_config = self._engine.create_runtime_config()
            runtime_config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(runtime_config)
        else:
            context = self._engine.create_execution_context()
        return Run(self.check(context, "creating an execution context"), self.check)

    def check(self, result: Any, action: str) -> Any:
        """`result`, unless it is one of the values that TensorRT returns for a failure."""
        if result is None or result is False:
            raise EngineError(f"{self.backend}: {action} failed: {self._said()}")
        return result

    def _shapes(self, mode: Any) -> dict[str, list[int]]:
        shapes = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_dtype(name) != self._trt.float32:
                raise EngineError(
                    f"{self.backend}: its tensor {name} is not float32; expected float32 for inputs and outputs; "
                    "export and build the engine again"
                )
            if self._engine.get_tensor_mode(name) == mode:
                shapes[str(name)] = list(self._engine.get_tensor_shape(name))[1:]
        return shapes

    def _said(self) -> str:
        return " ".join("; ".join(self._logger.errors).split()) or "TensorRT gave no reason"


class Run:
    """One execution context: one batch at a time."""

    def __init__(self, context: Any, check: Callable[[Any, str], Any]) -> None:
        self._context = context
        self._check = check

    def bind(self, name: str, address: int) -> None:
        """Where the tensor `name` lies in GPU memory."""
        self._check(self._context.set_tensor_address(name, address), f"binding {name}")

    def set_input_shape(self, shape: tuple[int, ...]) -> None:
        """For the runs from now on."""
        self._check(self._context.set_input_shape(INPUT, shape), f"a batch of {shape[0]}")

    def enqueue(self, stream: int) -> None:
        """Queues the network on the stream with the handle `stream`."""
        self._check(self._context.execute_async_v3(stream), "running a batch")


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


def import_runtime(builder: BuilderName, purpose: str = "", otherwise: str = "use its ONNX file") -> ModuleType:
    """The module that makes and runs plans of `builder`; `purpose` and `otherwise` are for the error message.

    Raises:
        DeviceError: it is not installed, and there is no GPU either.
        MissingDependency: it is not installed.
    """
    name, extra = RUNTIMES[builder]
    try:
        module = require(name, purpose or f"running an engine built by {builder}", extra, package=builder)
    except MissingDependency:
        if not purpose:  # to run a plan without a GPU, installing it would not help
            require_gpu(otherwise)
        raise
    if not hasattr(module, "Runtime"):  # a folder of type stubs passes for the package
        raise MissingDependency(builder, purpose, extra)
    return module
