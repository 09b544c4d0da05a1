"""The stand-in driver from within a test: what it counts, and what of it is to fail."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from support.tiny_models import CONTRACT, write_onnx
from trt_cls.artefacts.sidecar import BuilderName, Profile, Sidecar, write_sidecar
from trt_cls.contract import Contract

VERSION = "10.9.0.34"
"""Of the names in tests/gpu/tensorrt_over_cuda."""
CAPABILITY = "9.0"


class Driver:
    """The library below pycuda in this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.stand_in_count.restype = ctypes.c_long
        self._failing: set[str] = set()
        self._before = self._state()

    def count(self, name: str) -> int:
        """`launches`, `copies` and so on since the process began; `living`: what is not given back; `current`: contexts
        on this thread's stack; `queued`: streams with work; `blocking`: streams that the default one waits for."""
        return int(self._library.stand_in_count(name.encode()))

    def fail(self, call: str, after: int = 0) -> None:
        """The driver's function `call`, or any "allocation", fails after so many more successes; -1: never."""
        self._failing.add(call)
        self._library.stand_in_fail(call.encode(), ctypes.c_long(after))

    def repair(self) -> None:
        for call in self._failing:
            self.fail(call, -1)

    def assert_all_freed(self) -> None:
        """What lived when this object was made lives, no more, and nothing was done that a driver forbids."""
        gc.collect()
        assert self._state() == self._before

    def _state(self) -> dict[str, int]:
        return {name: self.count(name) for name in ("living", "current", "violations")}


def is_here() -> bool:
    """Whether this process runs over the stand-in driver."""
    try:
        return hasattr(ctypes.CDLL("libcuda.so.1"), "stand_in_count")
    except OSError:
        return False


def require() -> None:
    """Skips the module elsewhere."""
    if not is_here():
        pytest.skip("runs over the driver of tests/driver: make test-driver", allow_module_level=True)


lazy = pytest.mark.skipif(
    os.environ.get("DRIVER_ORDER", "lazy") != "lazy", reason="work does not wait to be waited for"
)


def elsewhere(call: Callable[[], Any]) -> Any:
    """What `call` gives in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


in_each_thread = pytest.mark.parametrize("where", [lambda call: call(), elsewhere], ids=["here", "in another thread"])
"""The test's `where` calls in the thread that first used the GPU, and in another: pycuda tells them apart."""


def names() -> Any:
    """The module that stands in for TensorRT."""
    return import_module("tensorrt")


def write_plan(
    folder: Path,
    profile: tuple[int, int],
    builder: BuilderName = "tensorrt",
    contract: Contract = CONTRACT,
    content: bytes | None = None,
    capability: str = CAPABILITY,
) -> Path:
    """model.engine for batches of `profile` beside the model.onnx that its answers are those of."""
    onnx, plan = write_onnx(folder / "model.onnx", contract), folder / "model.engine"
    smallest, largest = profile
    shapes = [[batch, *contract.preprocessing.input_shape] for batch in (smallest, smallest, largest)]
    plan.write_bytes(content or json.dumps(shapes).encode() + b"\n" + onnx.read_bytes())
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    batches = Profile(smallest, smallest, largest)
    write_sidecar(plan, Sidecar(contract, digest, builder, VERSION, (capability,), "", batches, onnx.name, digest))
    return plan
