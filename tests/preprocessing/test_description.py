from __future__ import annotations

from typing import Any

import pytest

from trt_cls.errors import SpecError
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.spec.experiment import (
    EvalConfig,
    Experiment,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    TrainConfig,
)


def train_config(**fields: Any) -> TrainConfig:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    return TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)


@pytest.mark.parametrize(
    ("mode", "image_mean", "channels", "expected"),
    [
        ("caffe", {}, 3, ("bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))),
        ("caffe", {"r": 1.0, "b": 3.0, "g": 2.0}, 3, ("bgr", 1.0, (3.0, 2.0, 1.0), (1.0, 1.0, 1.0))),
        ("caffe", {}, 1, ("gray", 1.0, (117.3786,), (1.0,))),
        ("caffe", {"l": 99.5}, 1, ("gray", 1.0, (99.5,), (1.0,))),
        ("torch", {}, 3, ("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("torch", {"b": 9.0, "g": 9.0, "r": 9.0}, 3, ("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("torch", {}, 1, ("gray", 255.0, (0.449,), (0.226,))),
        ("tf", {}, 3, ("rgb", 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))),
        ("tf", {}, 1, ("gray", 127.5, (1.0,), (1.0,))),
    ],
)
def test_modes_become_numbers(
    mode: str, image_mean: dict[str, float], channels: int, expected: tuple[Any, ...]
) -> None:
    model = ModelConfig(input_image_size=f"{channels},48,64", resize_interpolation_method="BICUBIC")
    experiment = Experiment(model_config=model, train_config=train_config(preprocess_mode=mode, image_mean=image_mean))
    found = preprocessing_from_spec(experiment, "train")
    assert (found.channel_order, found.divisor, found.mean, found.std) == expected
    assert (found.input_shape, found.filter) == ((channels, 48, 64), "bicubic")


@pytest.mark.parametrize("train_crops", [True, False])
@pytest.mark.parametrize("eval_crops", [True, False])
def test_each_split_has_its_own_center_crop(train_crops: bool, eval_crops: bool) -> None:
    experiment = Experiment(
        model_config=ModelConfig(),
        train_config=train_config(enable_center_crop=train_crops),
        eval_config=EvalConfig(eval_dataset_path="", enable_center_crop=eval_crops),
    )
    assert preprocessing_from_spec(experiment, "train").crop == ("center" if train_crops else "none")
    assert preprocessing_from_spec(experiment, "eval").crop == ("center" if eval_crops else "none")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(SpecError, match=r"^train_config: missing"):
        preprocessing_from_spec(Experiment(model_config=ModelConfig()), "eval")
    with pytest.raises(SpecError, match=r"^eval_config: missing"):
        preprocessing_from_spec(Experiment(model_config=ModelConfig(), train_config=train_config()), "eval")
