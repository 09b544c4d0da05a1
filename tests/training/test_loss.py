"""The training loss against torch's, torchvision's and scikit-learn's, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.spec.extensions import ClassWeights
from trt_cls.training.loss import class_weights, training_loss, weights_text

IMAGES = (400, 60, 8)
WEIGHTS = torch.tensor([0.4, 1.0, 7.5], dtype=torch.float64)


@pytest.fixture
def folder() -> ImageFolder:
    labels = np.repeat(np.arange(3), IMAGES)
    return ImageFolder(
        Path(), tuple(Sample(Path(str(n)), int(label)) for n, label in enumerate(labels)), ("a", "b", "c")
    )


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LABELS = torch.tensor([0, 0, 1, 2, 2, 0])
ONE_HOT = nn.functional.one_hot(LABELS, 3).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_and_smoothing_are_torchs_but_for_the_divisor(logits: Tensor, smoothing: float) -> None:
    expected = nn.CrossEntropyLoss(WEIGHTS, label_smoothing=smoothing, reduction="sum")(logits, LABELS) / 6
    targets = ONE_HOT * (1 - smoothing) + smoothing / 3
    torch.testing.assert_close(training_loss(logits, targets, WEIGHTS, 0.0), expected)
    torch.testing.assert_close(training_loss(logits, targets, WEIGHTS, 1e-12), expected)


def test_mixed_targets_are_weighted_as_their_parts(logits: Tensor) -> None:
    mixed = 0.7 * ONE_HOT + 0.3 * ONE_HOT.flip(0)
    parts = [nn.CrossEntropyLoss(WEIGHTS, reduction="sum")(logits, labels) / 6 for labels in (LABELS, LABELS.flip(0))]
    for gamma in (0.0, 1e-12):
        torch.testing.assert_close(training_loss(logits, mixed, WEIGHTS, gamma), 0.7 * parts[0] + 0.3 * parts[1])


def test_focal_loss_of_two_classes_is_torchvisions(logits: Tensor) -> None:
    from torchvision.ops import sigmoid_focal_loss

    two, labels = torch.stack([torch.zeros(6, dtype=torch.float64), logits[:, 0]], dim=1), LABELS.clamp_max(1)
    expected = sigmoid_focal_loss(logits[:, 0], labels.double(), alpha=-1, gamma=2.5, reduction="mean")
    torch.testing.assert_close(training_loss(two, nn.functional.one_hot(labels, 2).double(), None, 2.5), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_sure_answer_has_a_finite_gradient(gamma: float) -> None:
    sure = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    training_loss(sure, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), None, gamma).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    assert sure.grad[0].abs().max() == 0 < sure.grad[1].abs().max()


def test_inverse_weights_are_scikit_learns_balanced_ones(folder: ImageFolder) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([sample.label for sample in folder.samples])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights(ClassWeights(), folder)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert weights_text(found, folder) == "class weights: 0.39 for a (400 images) to 19.5 for c (8 images)"


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_effective_weights_are_those_of_cui(folder: ImageFolder, power: float) -> None:
    raw = np.array([((1 - 0.99) / (1 - 0.99**count)) ** power for count in IMAGES])
    expected = raw / np.average(raw, weights=IMAGES)
    found = class_weights(ClassWeights(method="effective", beta=0.99, power=power), folder)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
