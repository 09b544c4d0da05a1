"""TensorRT's names over a CUDA kernel that computes support/tiny_models.py's network: softmax(gain · channel means).

For a GPU machine without TensorRT, and for the driver of tests/driver: the engine's memory, stream capture, graphs and
both lanes of the pipeline then run on real hardware or under the checks of that driver. A plan is the shapes of the
profile as JSON, a line end, and the ONNX file. It shows nothing of TensorRT itself.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from trt_cls.preprocessing import nvrtc

__version__ = "10.9.0.34"
KERNEL = Path(__file__).with_name("network.cu")
MAJOR, MINOR = 75, 76
"""Attributes of a device, from cuda.h."""
ran: list[int] = []
"""The batch of each run that was queued or captured, for tests to look at and to clear."""
fail_after = -1
"""How many more runs are queued before one fails; -1: none fails."""
_cuda = ctypes.CDLL("libcuda.so.1")
float32 = "float32"


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass

    def log(self, severity: int, message: str) -> None:
        pass


class Logger(ILogger):
    def __init__(self, severity: int = ILogger.WARNING) -> None:
        pass


class TensorIOMode:
    NONE, INPUT, OUTPUT = range(3)


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class BuilderFlag:
    TF32 = 7


class LayerInformationFormat:
    JSON = "json"


class MemoryPoolType:
    WORKSPACE = 0


class OnnxParser:
    def __init__(self, network: list[bytes], logger: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, content: bytes) -> bool:
        self.network.append(bytes(content))
        return True

    def parse_from_file(self, path: str) -> bool:
        return self.parse(Path(path).read_bytes())


class OptimizationProfile:
    shapes: list[list[int]]

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes = [list(shape) for shape in shapes]


class BuilderConfig:
    profile: OptimizationProfile

    def clear_flag(self, flag: int) -> None:
        pass

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        pass

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profile = profile
        return 0


class Builder:
    def __init__(self, logger: Any) -> None:
        pass

    def create_network(self, flags: int) -> list[bytes]:
        return []

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: list[bytes], config: BuilderConfig) -> bytes:
        return json.dumps(config.profile.shapes).encode() + b"\n" + network[0]


class Engine:
    num_io_tensors = 2

    module: ctypes.c_void_p | None = None

    def __init__(self, profile: list[tuple[int, ...]], logger: ILogger) -> None:
        self.profile, self.logger = profile, logger
        major, minor, self.function = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
        check(_cuda.cuInit(0))
        check(_cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, 0))
        check(_cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, 0))
        module = ctypes.c_void_p()
        with primary_context(), tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin(f"sm_{major.value}{minor.value}"))
            file.flush()
            check(_cuda.cuModuleLoad(ctypes.byref(module), file.name.encode()))
            self.module = module
            check(_cuda.cuModuleGetFunction(ctypes.byref(self.function), module, b"network"))

    def __del__(self) -> None:
        if self.module:
            with primary_context():
                _cuda.cuModuleUnload(self.module)

    def get_tensor_name(self, index: int) -> str:
        return ("input_1", "predictions")[index]

    def get_tensor_mode(self, name: str) -> int:
        return TensorIOMode.INPUT if name == "input_1" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.profile[0][1:]) if name == "input_1" else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return self.profile

    def create_engine_inspector(self) -> Inspector:
        return Inspector()

    def create_execution_context(self) -> Context:
        return Context(self)


class Inspector:
    def get_engine_information(self, form: str) -> str:
        return json.dumps({"Layers": ["network"]})


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.engine.profile[0][0] <= shape[0] <= self.engine.profile[2][0]

    def execute_async_v3(self, stream: int) -> bool:
        global fail_after
        if fail_after == 0:
            self.engine.logger.log(ILogger.ERROR, "the run\nfailed")
            return False
        fail_after -= 1
        count, _, height, width = self.shape
        ran.append(count)
        arguments = (
            ctypes.c_void_p(self.addresses["input_1"]), ctypes.c_void_p(self.addresses["predictions"]),
            ctypes.c_int(height * width),
        )  # fmt: skip
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        launch = self.engine.function, count, 1, 1, 32, 1, 1, 0, ctypes.c_void_p(stream), pointers, None
        return _cuda.cuLaunchKernel(*launch) == 0


class Runtime:
    engine = Engine

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            shapes = json.loads(plan.partition(b"\n")[0])
        except ValueError as error:
            self.logger.log(ILogger.ERROR, f"it is not\na plan: {error}")
            return None
        return self.engine([tuple(shape) for shape in shapes], self.logger)


@contextmanager
def primary_context() -> Iterator[None]:
    """Of the first GPU: TensorRT takes it by itself, whatever context is current."""
    context = ctypes.c_void_p()
    check(_cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    check(_cuda.cuCtxPushCurrent_v2(context))
    try:
        yield
    finally:
        _cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        _cuda.cuDevicePrimaryCtxRelease_v2(0)


@cache
def cubin(architecture: str) -> bytes:
    return nvrtc.compile_source(KERNEL.read_bytes(), KERNEL.name, architecture)


def check(error: int) -> None:
    if error:
        raise RuntimeError(f"CUDA error {error}")
