"""Reference data that stands beside the checkout; tests that need it skip, saying so, where it is absent."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """The file or folder `name` of the reference data."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"reference data not present: {path}")
    return path


def tao(name: str) -> Path:
    """A file made by NVIDIA's own code."""
    return shared("tao") / name


@cache
def tao_json(name: str) -> Any:
    """A JSON file made by NVIDIA's own code."""
    return json.loads(tao(name).read_text())


def cifar10() -> Path:
    """Folders `train` (10,000) and `test` (2,000) of 32×32 PNG images in 10 classes."""
    return _unpacked("data/cifar10-small.tar.gz") / "cifar10-small"


def photos() -> Path:
    """160 photographs in class folders."""
    return _unpacked("data/photos.tar") / "photos"


@cache
def _unpacked(archive: str) -> Path:
    source = shared(archive)
    target = Path(tempfile.gettempdir()) / f"trt-cls-test-data-{os.getuid()}" / source.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside, tarfile.open(source) as tar:
            tar.extractall(beside, filter="data")
            os.rename(beside, target)
            os.mkdir(beside)
    return target
