from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores; set before numpy and torch are imported. What is set outside counts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup() -> None:
    """Exports of equal networks are made once; tests that load no ONNX are left alone."""
    if "trt_cls.export.onnx_file" in sys.modules:
        from export_memory import remember_exports

        remember_exports()


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
