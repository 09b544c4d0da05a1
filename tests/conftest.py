from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.forked import Forked

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; set before numpy and torch are imported. What is set outside counts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """The garbage collector leaves the modules and tests alone: to look through them took a tenth of an export."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(3_000, 10, 10)


def pytest_runtest_setup() -> None:
    """Exports of equal networks are made once; tests that load no ONNX are left alone."""
    if "trt_cls.export.torch_to_onnx" in sys.modules:
        from support.export_memory import remember_exports

        remember_exports()


@pytest.fixture
def fresh_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the exporter's own repeatability: torch exports each time."""
    from support.export_memory import EXPORT
    from trt_cls.export import torch_to_onnx

    monkeypatch.setattr(torch_to_onnx, "_exported", EXPORT)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """ResNets and SqueezeNets with an eighth of the channels: what is tested there is not the network.

    A step of resnet10 is then one of 80,000 weights, not of 5 million, and so are its files. Processes that a test
    starts build whole ones, but for those of `forked` with NARROW in their environment.
    """
    from support.narrowing import narrowed
    from trt_cls.models.builder import Builder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "conv", narrowed(Builder.conv))
        yield


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """Starts processes that need not import torch each; it is imported once for all tests of a worker."""
    from support.forked import forked

    with forked(tmp_path_factory.mktemp("forked")) as running:
        yield running


def pytest_unconfigure() -> None:
    """What the loaders' processes shared is forgotten while torch is whole; later each piece complains by itself."""
    if reductions := sys.modules.get("torch.multiprocessing.reductions"):
        reductions.shared_cache.clear()
