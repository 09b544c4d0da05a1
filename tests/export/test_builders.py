from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from trt_cls.errors import DeviceError, MissingDependency
from trt_cls.export import tensorrt
from trt_cls.export.tensorrt import BuilderRequest, choose_builder
from trt_cls.gpu import Gpu


class Machine:
    """What is installed and plugged in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.has()

    def has(self, *packages: str, gpu: bool = False, stubs: tuple[str, ...] = ()) -> None:
        for name in ("tensorrt", "tensorrt_rtx"):
            module = ModuleType(name) if name in (*packages, *stubs) else None
            if module and name in packages:
                module.Builder = module.Runtime = object  # type: ignore[attr-defined]
                module.__version__ = "10.9"
            self._patch.setitem(sys.modules, name, module)
        found = Gpu("NVIDIA Test", "8.7") if gpu else None
        self._patch.setattr(tensorrt, "visible_gpu", lambda: found)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("packages", "gpu", "request_", "expected"),
    [
        (("tensorrt", "tensorrt_rtx"), True, "auto", "tensorrt"),
        (("tensorrt", "tensorrt_rtx"), False, "auto", "tensorrt-rtx"),
        (("tensorrt_rtx",), True, "auto", "tensorrt-rtx"),
        (("tensorrt_rtx",), False, "tensorrt-rtx", "tensorrt-rtx"),
        (("tensorrt", "tensorrt_rtx"), True, "tensorrt-rtx", "tensorrt-rtx"),
        (("tensorrt",), True, "tensorrt", "tensorrt"),
    ],
)
def test_takes_the_first_that_can_work(
    machine: Machine, packages: tuple[str, ...], gpu: bool, request_: BuilderRequest, expected: str
) -> None:
    machine.has(*packages, gpu=gpu)
    choice, _ = choose_builder(request_, required=True)
    assert choice is not None
    assert choice.name == expected
    assert (choice.gpu is not None) == (expected == "tensorrt"), "TensorRT-RTX compiles for more than the GPU at hand"


@pytest.mark.parametrize(
    ("packages", "why"),
    [((), "tensorrt is not installed, and tensorrt-rtx is not"), (("tensorrt",), "needs a GPU.*tensorrt-rtx is not")],
)
def test_without_any_builder_says_why(machine: Machine, packages: tuple[str, ...], why: str) -> None:
    machine.has(*packages)
    choice, reason = choose_builder("auto", required=False)
    assert choice is None
    assert re.search(why, reason)
    with pytest.raises(MissingDependency):
        choose_builder("auto", required=True)


@pytest.mark.parametrize("packages", [(), ("tensorrt", "tensorrt_rtx")])
def test_none_builds_nothing(machine: Machine, packages: tuple[str, ...]) -> None:
    machine.has(*packages, gpu=True)
    assert choose_builder("none", required=False)[0] is None


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "gpu"), ("tensorrt-rtx", "rtx")])
def test_a_builder_that_was_named_and_is_missing_is_an_error(
    machine: Machine, name: BuilderRequest, extra: str
) -> None:
    machine.has(gpu=True)
    with pytest.raises(MissingDependency, match=rf"trt-cls\[{extra}\]"):
        choose_builder(name, required=False)


def test_tensorrt_without_a_gpu_is_an_error_when_named(machine: Machine) -> None:
    machine.has("tensorrt", "tensorrt_rtx")
    with pytest.raises(DeviceError, match="--builder tensorrt-rtx"):
        choose_builder("tensorrt", required=False)


def test_a_package_of_stubs_is_not_tensorrt(machine: Machine) -> None:
    machine.has(gpu=True, stubs=("tensorrt", "tensorrt_rtx"))
    assert choose_builder("auto", required=False)[0] is None
