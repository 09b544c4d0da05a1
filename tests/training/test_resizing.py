"""Progressive resizing: the sizes against Composer's schedule, the pixels against torchvision, the trainings whole."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as torchvision

from trt_cls.errors import RequestError
from trt_cls.spec.experiment import Experiment, Extensions, ModelConfig
from trt_cls.spec.extensions import ProgressiveResizing
from trt_cls.training.resizing import resized, size_at
from trt_cls.training.run import find_rate, train
from trt_cls.training.setup import make_model
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]
HALF = ProgressiveResizing(delay_fraction=0.5, finetune_fraction=0.5, size_increment=8)
"""Of images of 16 pixels: 8, then 16."""


@pytest.mark.parametrize(
    ("asked", "progress", "expected"),
    [
        (None, 0.0, (224, 160)),
        (ProgressiveResizing(), 0.0, (112, 80)),
        (ProgressiveResizing(), 0.5, (112, 80)),
        (ProgressiveResizing(), 0.575, (140, 100)),  # a quarter of the way from 0.5 to 0.8: a scale of 0.625
        (ProgressiveResizing(), 0.65, (168, 120)),
        (ProgressiveResizing(), 0.799, (224, 160)),  # the nearest multiple
        (ProgressiveResizing(), 0.8, (224, 160)),
        (ProgressiveResizing(size_increment=32), 0.0, (128, 64)),  # 3.5 and 2.5 of 32, to the even one
        (ProgressiveResizing(size_increment=300), 0.0, (224, 160)),
        (ProgressiveResizing(initial_scale=0.01), 0.0, (4, 4)),
        (ProgressiveResizing(delay_fraction=0, finetune_fraction=0), 0.5, (168, 120)),
        (ProgressiveResizing(delay_fraction=0.5, finetune_fraction=0.5), 0.499, (112, 80)),
        (ProgressiveResizing(delay_fraction=0.5, finetune_fraction=0.5), 0.5, (224, 160)),
    ],
)
def test_sizes(asked: ProgressiveResizing | None, progress: float, expected: tuple[int, int]) -> None:
    assert size_at(progress, (224, 160), asked) == expected


def test_pixels_are_those_of_torchvision() -> None:
    images = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(resized(images, (12, 9)), torchvision.resize(images, [12, 9], antialias=True))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes of the batches that a network trains on."""
    sizes: list[tuple[int, ...]] = []

    def note(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        if module.training:
            sizes.append(tuple(given[0].shape[2:]))

    def noted(*given: Any, **options: Any) -> nn.Module:
        model = make_model(*given, **options)
        model.register_forward_pre_hook(note)
        return model

    monkeypatch.setattr("trt_cls.training.run.make_model", noted)
    return sizes


def test_a_resumed_training_sees_the_sizes_of_a_whole_one_and_ends_in_its_bytes(
    seen: list[tuple[int, ...]], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    asked = experiment(extensions=Extensions(progressive_resizing=HALF, ema_decay=0.9))
    whole = train(asked, tmp_path / "whole", device="cpu", reporter=quiet())
    assert seen == [(8, 8)] * 3 + [(16, 16)] * 3
    seen.clear()
    for stop in ((1, 1), (2, 1)):
        with pytest.raises(Interrupted):
            train(
                asked,
                tmp_path / "parts",
                device="cpu",
                resume=(tmp_path / "parts").exists(),
                reporter=quiet(*stop, partial(signal.raise_signal, signal.SIGTERM)),
            )
    parts = train(asked, tmp_path / "parts", device="cpu", resume=True, reporter=quiet())
    assert seen == [(8, 8)] * 3 + [(16, 16)] * 3
    assert parts.rows == whole.rows
    assert parts.last.read_bytes() == whole.last.read_bytes()


def test_batches_of_a_group_have_one_size(
    seen: list[tuple[int, ...]], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    asked = Extensions(progressive_resizing=HALF, accumulate_steps=2)
    train(experiment(extensions=asked, n_epochs=1), tmp_path, device="cpu", reporter=quiet())
    assert seen == [(8, 8), (8, 8), (16, 16)]


def test_the_search_for_a_rate_goes_through_the_sizes_too(
    seen: list[tuple[int, ...]], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    curve = find_rate(
        experiment(extensions=Extensions(progressive_resizing=HALF)), tmp_path, device="cpu", reporter=quiet()
    )
    of_one = [(8, 8)] * ((curve.steps + 1) // 2) + [(16, 16)] * (curve.steps // 2)
    assert seen[-curve.steps :] == of_one


@pytest.mark.parametrize("start", [train, find_rate])
@pytest.mark.parametrize(
    ("model", "asked", "pixels"),
    [
        (ModelConfig(arch="timm/vit_tiny_patch16_224", input_image_size="3,32,32"), HALF, 16),
        (ModelConfig(arch="alexnet", input_image_size="3,32,32", retain_head=True), HALF, 16),
        # takes 16, 32 and 48
        (ModelConfig(arch="timm/test_vit", input_image_size="3,32,32"), ProgressiveResizing(), 20),
    ],
    ids=["one size", "a dense layer", "multiples of its patches"],
)
def test_a_network_that_does_not_take_a_size_is_refused_before_it_trains(
    model: ModelConfig,
    asked: ProgressiveResizing,
    pixels: int,
    start: Callable[..., Any],
    experiment: Make,
    quiet: Any,
    tmp_path: Path,
) -> None:
    pytest.importorskip("timm")
    given = experiment(model=model, extensions=Extensions(progressive_resizing=asked))
    found = rf"progressive_resizing: {model.arch} does not take images of {pixels}×{pixels} pixels"
    with pytest.raises(RequestError, match=found):
        start(given, tmp_path, device="cpu", reporter=quiet())
