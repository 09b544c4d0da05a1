"""Whole trainings on a tiny dataset: files, repeatability, resuming, broken images and refusals."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trt_cls import spec
from trt_cls.data.folder import read_classmap
from trt_cls.errors import ArtefactError, DataError, DeviceError, RequestError, TrtClsError
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec import Experiment
from trt_cls.training import TrainingResult, train
from trt_cls.training.interrupt import Interrupted

Make = Callable[..., Experiment]


def trained(experiment: Experiment, folder: Path, reporter: Any, **options: Any) -> TrainingResult:
    return train(experiment, folder, device="cpu", reporter=reporter, **options)


def numbers(folder: Path) -> tuple[str, dict[str, bytes]]:
    """The curve as written, and the bytes of every weight of every checkpoint."""
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((folder / "weights").iterdir())
        for name, tensor in load_file(path).items()
    }
    return (folder / "training.csv").read_text(), weights


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """An uninterrupted training of the tiny spec."""
    from conftest_training import tiny

    folder = tmp_path_factory.mktemp("reference")
    trained(tiny(images), folder, None)
    return folder
