"""A teacher: its part in the loss, in which formats it comes, and which are refused."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trt_cls.errors import ArtefactError, RequestError
from trt_cls.export.export import export
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.spec.experiment import (
    Distillation,
    Experiment,
    Extensions,
    ModelConfig,
)
from trt_cls.training.compute import choose_compute
from trt_cls.training.learner import Teacher
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]
NORM = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=True)
CPU = choose_compute("cpu", "fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return train(experiment(n_epochs=1), folder, device="cpu", reporter=quiet()).last


def answers(logits: Tensor, temperature: float) -> Tensor:
    return functional.softmax(logits / temperature, dim=1)


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.5), (1.0, 1.0), (0.5, 0.2)])
def test_a_teachers_part_in_the_loss_is_that_of_its_logits(temperature: float, weight: float, teacher: Path) -> None:
    checkpoint = load_checkpoint(teacher)
    asked = Distillation(teacher=str(teacher), temperature=temperature, weight=weight)
    found = Teacher(asked, checkpoint.contract, CPU)
    torch.manual_seed(3)
    images, logits, plain = torch.randn(5, 3, 16, 16), torch.randn(5, 3), torch.tensor(1.25)
    with torch.no_grad():
        of_teacher, of_learner = answers(checkpoint.module(images), temperature), answers(logits, temperature)
    divergence = (of_teacher * (of_teacher / of_learner).log()).sum(dim=1).mean()
    expected = (1 - weight) * plain + weight * temperature**2 * divergence
    # float32 probabilities: 6e-8 of each, and a few times that of the logarithm
    torch.testing.assert_close(found.blended(plain, logits, images), expected, rtol=1e-5, atol=1e-6)


def test_an_onnx_file_teaches_as_its_checkpoint_does(teacher: Path, tmp_path: Path) -> None:
    contract = load_checkpoint(teacher).contract
    torch.manual_seed(3)
    images, logits, plain = torch.randn(5, 3, 16, 16), torch.randn(5, 3), torch.tensor(1.0)
    export(teacher, tmp_path / "teacher.onnx")
    losses = []
    for path in (teacher, tmp_path / "teacher.onnx"):
        asked = Distillation(teacher=str(path), temperature=2.0)
        losses.append(Teacher(asked, contract, CPU).blended(plain, logits, images))
    # two backends' sums: 1e-6 of a logit
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": ("blue", "green", "yellow")}, "classes: ['blue', 'green', 'yellow'] ≠ ['blue', 'green', 'red']"),
        ({"preprocessing": {"filter": "bicubic"}}, "preprocessing.filter: bicubic ≠ bilinear"),
    ],
)
def test_a_teacher_of_other_images_or_classes_is_refused(change: dict[str, Any], named: str, teacher: Path) -> None:
    contract = load_checkpoint(teacher).contract
    if "preprocessing" in change:
        change = {"preprocessing": replace(contract.preprocessing, **change["preprocessing"])}
    with pytest.raises(ArtefactError) as refusal:
        Teacher(Distillation(teacher=str(teacher)), replace(contract, **change), CPU)
    assert named in str(refusal.value)


def test_resuming_with_another_teacher_is_refused_but_its_file_may_move(
    teacher: Path, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    asked = experiment(extensions=Extensions(distillation=Distillation(teacher=str(teacher))))
    stop = quiet(1, 1, partial(signal.raise_signal, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(asked, tmp_path / "run", device="cpu", reporter=stop)
    other, moved = tmp_path / "other.safetensors", tmp_path / "moved.safetensors"
    moved.write_bytes(teacher.read_bytes())
    save_checkpoint(other, build(NORM, 3), load_checkpoint(teacher).contract)

    def resume(path: Path) -> None:
        again = experiment(extensions=Extensions(distillation=Distillation(teacher=str(path))))
        train(again, tmp_path / "run", device="cpu", reporter=quiet(), resume=True)

    with pytest.raises(RequestError, match=r"teacher: .* ≠ "):
        resume(other)
    resume(moved)
