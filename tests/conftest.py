from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; set before numpy and torch are imported. What is set outside counts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _exports_of_equal_networks_are_made_once() -> Iterator[None]:
    from export_memory import remember_exports

    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch)
        yield


@pytest.fixture
def fresh_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the exporter's own repeatability: torch exports each time."""
    from export_memory import EXPORT

    from trt_cls.export import onnx_file

    monkeypatch.setattr(onnx_file, "_exported", EXPORT)


def pytest_unconfigure() -> None:
    """What the loaders' processes shared is forgotten while torch is whole; later each piece complains by itself."""
    if reductions := sys.modules.get("torch.multiprocessing.reductions"):
        reductions.shared_cache.clear()
