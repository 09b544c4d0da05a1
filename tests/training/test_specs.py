"""The recipes in specs/ train: on a few tiny images, with a smaller network of the same library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trt_cls.spec import load
from trt_cls.training.run import train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("torchvision_v2_resnet50", "torchvision/mobilenet_v3_small"),
        ("timm_a3_resnet50", "timm/test_resnet"),
        ("finetune_vit", "timm/test_vit"),
        ("small_data", "timm/test_resnet"),
    ],
)
def test_a_recipe_trains(name: str, arch: str, images: Path, quiet: Any, tmp_path: Path) -> None:
    pytest.importorskip(arch.partition("/")[0])
    smaller = {
        "model_config.arch": arch,
        "model_config.input_image_size": "3,32,32",
        "train_config.train_dataset_path": images / "train",
        "train_config.val_dataset_path": images / "val",
        "train_config.pretrained_model_path": "",
        "train_config.batch_size_per_gpu": 8,
        "train_config.n_epochs": 1,
        "train_config.n_workers": 0,
    }
    asked = load(
        ROOT / f"specs/{name}.txt", overrides=[f"{key}={value}" for key, value in smaller.items()], paths=False
    )
    [row] = train(asked, tmp_path, device="cpu", reporter=quiet()).rows
    assert 0 < row.loss < 5
