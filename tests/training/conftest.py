"""A tiny dataset of colored noise in three classes, and an experiment on it that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.quiet import Quiet
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    Sgd,
    TrainConfig,
)

CLASSES = ("blue", "green", "red")
MODEL = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=True)


@pytest.fixture(scope="module", autouse=True)
def narrow_here(narrow: None) -> None:
    """Trainings of narrow networks: the trainer is what is tested."""


def write_images(root: Path, per_class: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for index, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 150, (20, 20, 3), dtype=np.uint8)
            pixels[..., 2 - index] += 60
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 7, seed=1)  # 21 images: two batches of eight and one of five
    write_images(root / "val", 4, seed=2)
    return root


@pytest.fixture(scope="session")
def experiment(images: Path) -> Callable[..., Experiment]:
    """Makes the tiny experiment: three steps an epoch, two epochs; fields of train_config may be given."""

    def make(
        root: Path = images, model: ModelConfig = MODEL, extensions: Extensions = NO_EXTENSIONS, **given: Any
    ) -> Experiment:
        config = TrainConfig(
            train_dataset_path=str(root / "train"),
            val_dataset_path=str(root / "val"),
            batch_size_per_gpu=8,
            n_epochs=2,
            n_workers=0,
            random_seed=7,
            optimizer=Optimizer(sgd=Sgd(momentum=0.9)),
            reg_config=RegConfig(type="L2", weight_decay=1e-4),
            lr_config=LrConfig(cosine=CosineLr(learning_rate=0.02, soft_start=0.2)),
        )
        return Experiment(model_config=model, train_config=replace(config, **given), extensions=extensions)

    return make


@pytest.fixture(scope="session")
def quiet() -> type[Quiet]:
    return Quiet
