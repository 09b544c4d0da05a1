from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; set before numpy and torch are imported. What is set outside counts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup() -> None:
    """Exports of equal networks are made once; tests that load no ONNX are left alone."""
    if "trt_cls.export.onnx_file" in sys.modules:
        from support.export_memory import remember_exports

        remember_exports()


@pytest.fixture
def fresh_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the exporter's own repeatability: torch exports each time."""
    from support.export_memory import EXPORT
    from trt_cls.export import onnx_file

    monkeypatch.setattr(onnx_file, "_exported", EXPORT)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """ResNets and SqueezeNets with an eighth of the channels: what is tested there is not the network.

    A step of resnet10 is then one of 80,000 weights, not of 5 million, and so are its files. Processes that a test
    starts build whole ones.
    """
    from trt_cls.models.builder import Builder

    real = Builder.conv

    @functools.wraps(real)
    def conv(self: Builder, x: Any, name: str, filters: int, *given: Any, **options: Any) -> Any:
        wide = self.config.arch in ("resnet", "squeezenet") and filters >= 64
        return real(self, x, name, filters // 8 if wide else filters, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "conv", conv)
        yield


@pytest.fixture
def whole(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `narrow`, for what is compared with a training in another process."""
    from trt_cls.models.builder import Builder

    monkeypatch.setattr(Builder, "conv", Builder.conv.__wrapped__)  # type: ignore[attr-defined]


def pytest_unconfigure() -> None:
    """What the loaders' processes shared is forgotten while torch is whole; later each piece complains by itself."""
    if reductions := sys.modules.get("torch.multiprocessing.reductions"):
        reductions.shared_cache.clear()
