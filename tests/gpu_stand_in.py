"""A GPU played by the CPU: pycuda's driver, the driver's graphs, and TensorRT, as far as trt-cls uses them.

Streams are lazy: what is queued runs when the stream is waited for, and not before, so that memory which is used again
too early, or freed, gives wrong results. Kernels are the ones of kernels/preprocess.cu, networks run in ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels import host

POISON = 0xFF
"""Bytes of memory that nobody has written to, or that was freed: NaN as float32."""
Work = Callable[[], None]


class DriverError(Exception):
    """pycuda.driver.Error."""


class Memory:
    """Memory on the GPU or, page-locked, on the host; its bytes outlive it, poisoned, for work that comes too late."""

    def __init__(self, gpu: StandIn, size: int) -> None:
        gpu.require_context()
        if gpu.fail_allocation_after == 0:
            raise DriverError("cuMemAlloc failed:\nout of memory")
        gpu.fail_allocation_after -= 1
        self._live = gpu.live
        self.content = (ctypes.c_ubyte * size).from_buffer(bytearray([POISON]) * size)
        gpu.ever.append(self.content)
        self._live.add(int(self))

    def __int__(self) -> int:
        return ctypes.addressof(self.content)

    def __del__(self) -> None:
        if hasattr(self, "content"):
            self._live.discard(int(self))
            ctypes.memset(int(self), POISON, len(self.content))


class PageLocked(Memory):
    """As an array; numpy keeps it alive as long as there is a view of it."""

    def __init__(self, gpu: StandIn, shape: Any, dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        super().__init__(gpu, size)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.__array_interface__ = {
            "shape": shape, "typestr": np.dtype(dtype).str, "data": (int(self), False), "version": 3,
        }  # fmt: skip


class Stream:
    """Queued work, and where work goes while the stream captures."""

    def __init__(self, gpu: StandIn, flags: int = 0) -> None:
        gpu.require_context()
        self.flags = flags
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.handle = len(gpu.streams) + 1
        gpu.streams[self.handle] = self

    def add(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        assert self.captured is None, "a stream that captures can't be waited for"
        queue, self.queue = self.queue, []
        for work in queue:
            work()


class Event:
    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.time = 0.0

    def record(self, stream: Stream) -> Event:
        self.stream = stream
        stream.add(lambda: setattr(self, "time", time.perf_counter()))
        return self

    def synchronize(self) -> None:
        self.stream.synchronize()

    def time_since(self, other: Event) -> float:
        return (self.time - other.time) * 1e3


class Driver(SimpleNamespace):
    """A module is known by its identity."""

    __hash__ = object.__hash__


class Kernel:
    """A prepared function: launched with addresses and whole numbers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, types: str) -> Kernel:
        assert types == ("PPPPPiiiP" if self.name.startswith("augment") else "PPPPiiiP")
        return self

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Stream, *arguments: int
    ) -> None:
        _, sources, *tables = arguments[: len(arguments) - 4]
        assert sources % 8 == 0
        assert [table % 4 for table in tables] == [0] * len(tables)
        stream.add(lambda: host.launch(self.name, grid, block, arguments))


class StandIn:
    """The GPU; `driver` is pycuda.driver, `library` libcuda, `tensorrt` the module."""

    def __init__(self, profile: tuple[int, int], compute_capability: tuple[int, int] = (8, 0)) -> None:
        self.live: set[int] = set()
        self.ever: list[Any] = []
        self.streams: dict[int, Stream] = {}
        self.contexts_retained = 0
        self.fail_allocation_after = -1
        self.fail_run_after = -1
        self.capturable = True
        self.launched_graphs = 0
        self.live_graphs: dict[int, list[Work]] = {}
        self.profile = profile
        self.batches: list[int] = []
        self._thread = threading.local()
        self._compute_capability = compute_capability
        self.driver, self.libcuda = self._driver(), self._library()
        self.tensorrt = tensorrt(self)

    def require_context(self) -> None:
        assert getattr(self._thread, "pushed", 0) > 0, "no CUDA context is current"

    def _push(self, by: int) -> None:
        self._thread.pushed = getattr(self._thread, "pushed", 0) + by

    def _retain(self, by: int) -> None:
        self.contexts_retained += by

    def _driver(self) -> SimpleNamespace:
        context = SimpleNamespace(push=lambda: self._push(1), detach=lambda: self._retain(-1))

        def retain() -> SimpleNamespace:
            self._retain(1)
            return context

        device = SimpleNamespace(
            name=lambda: "Stand-in",
            compute_capability=lambda: self._compute_capability,
            retain_primary_context=retain,
        )
        return Driver(
            Error=DriverError,
            Device=lambda number: device,
            Context=SimpleNamespace(pop=lambda: self._push(-1)),
            Stream=lambda flags=0: Stream(self, flags),
            Event=Event,
            module_from_file=lambda path: SimpleNamespace(get_function=Kernel),
            pagelocked_empty=lambda shape, dtype: np.asarray(PageLocked(self, shape, dtype)),
            mem_alloc=lambda size: Memory(self, size),
            memset_d8=lambda memory, value, size: ctypes.memset(int(memory), value, size),
            memcpy_htod_async=lambda device, array, stream: self._copy(int(device), self._pinned(array), array, stream),
            memcpy_dtoh_async=lambda array, device, stream: self._copy(self._pinned(array), int(device), array, stream),
            memcpy_dtod_async=lambda to, source, size, stream: stream.add(
                lambda: ctypes.memmove(int(to), int(source), size)
            ),
        )

    def _copy(self, to: int, source: int, array: np.ndarray, stream: Stream) -> None:
        self.require_context()
        size = array.nbytes
        stream.add(lambda: ctypes.memmove(to, source, size))

    @staticmethod
    def _pinned(array: np.ndarray) -> int:
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, PageLocked), "a copy that shall not block needs page-locked memory"
        assert array.flags.c_contiguous
        return array.ctypes.data

    def _library(self) -> SimpleNamespace:
        """The calls of cuda_graph.py; each returns 0, or an error."""
        names = iter(range(1, 1 << 30))

        def begin(stream: ctypes.c_void_p, mode: int) -> int:
            self.streams[stream.value].captured = []
            return 0

        def end(stream: ctypes.c_void_p, graph: Any) -> int:
            captured, self.streams[stream.value].captured = self.streams[stream.value].captured, None
            if not self.capturable:
                return 900
            graph._obj.value = next(names)
            self.live_graphs[graph._obj.value] = captured
            return 0

        def instantiate(executable: Any, graph: ctypes.c_void_p, flags: Any) -> int:
            executable._obj.value = next(names)
            self.live_graphs[executable._obj.value] = self.live_graphs[graph.value]
            return 0

        def launch(executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
            self.launched_graphs += 1
            for work in self.live_graphs[executable.value]:
                self.streams[stream.value].add(work)
            return 0

        def destroy(graph: ctypes.c_void_p) -> int:
            del self.live_graphs[graph.value]
            return 0

        return SimpleNamespace(
            cuStreamBeginCapture_v2=begin,
            cuStreamEndCapture=end,
            cuGraphInstantiateWithFlags=instantiate,
            cuGraphLaunch=launch,
            cuGraphDestroy=destroy,
            cuGraphExecDestroy=destroy,
        )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        host.build()
        for module in ("engines.tensorrt.engine", "preprocessing.cuda"):
            monkeypatch.setattr(f"trt_cls.{module}.cuda_driver", lambda *told: self.driver)
        monkeypatch.setattr("trt_cls.preprocessing.cuda.compiled", lambda arch, folder: Path(f"{arch}.cubin"))
        monkeypatch.setattr("trt_cls.engines.tensorrt.buffers.driver_library", lambda: self.libcuda)
        monkeypatch.setattr("trt_cls.engines.tensorrt.engine.import_runtime", lambda builder: self.tensorrt)

    def assert_all_freed(self) -> None:
        assert (len(self.live), self.live_graphs) == (0, {})
        assert self.contexts_retained <= 1  # the primary context is the process's
        assert getattr(self._thread, "pushed", 0) == 0
        assert [stream for stream in self.streams.values() if stream.queue] == []


def tensorrt(gpu: StandIn) -> SimpleNamespace:
    """The names of TensorRT that running a plan takes; the plan is an ONNX file."""

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal"

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan.startswith(b"not"):
                self.logger.log(ILogger.ERROR, "it is not\na plan")
                return None
            return Engine(gpu, plan, self.logger)

    return SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        float32="f32",
        __version__="10.9",
    )


class Engine:
    def __init__(self, gpu: StandIn, plan: bytes, logger: Any) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        self.gpu = gpu
        self.logger = logger
        self.tensors = {"input_1": self.session.get_inputs()[0], "predictions": self.session.get_outputs()[0]}
        self.num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "input_1" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "f32"

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, *self.tensors[name].shape[1:]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        rest = self.tensors[name].shape[1:]
        return [(batch, *rest) for batch in (self.gpu.profile[0], self.gpu.profile[0], self.gpu.profile[1])]

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> Context:
        return Context(self, config)


class Context:
    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine = engine
        self.config = config
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, largest = self.engine.gpu.profile
        self.shape = shape
        return smallest <= shape[0] <= largest

    def execute_async_v3(self, handle: int) -> bool:
        gpu, shape = self.engine.gpu, self.shape
        if gpu.fail_run_after == 0:
            self.engine.logger.log("error", "the run\nfailed")
            return False
        gpu.fail_run_after -= 1

        def run() -> None:
            assert self.shape == shape, "the shape of the context is another than when this was queued"
            gpu.batches.append(shape[0])
            images = _floats(self.addresses["input_1"], shape)
            (answers,) = self.engine.session.run(None, {"input_1": images.copy()})
            _floats(self.addresses["predictions"], answers.shape)[...] = answers

        gpu.streams[handle].add(run)
        return True


def _floats(address: int, shape: tuple[int, ...]) -> np.ndarray:
    content = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(content, np.float32).reshape(shape)
