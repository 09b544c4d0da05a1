"""Optimizers against their update rules, worked out for one weight."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from trt_cls.spec.experiment import Adam, LrConfig, Optimizer, Rmsprop, Sgd
from trt_cls.training.optimization import OPTIMIZERS, SCHEDULES, optimizer


def after_two_steps(config: Optimizer, gradients: tuple[float, float]) -> float:
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    updates = optimizer(config, [{"params": [weight], "weight_decay": 0.0}])
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        updates.step()
    return weight.item()


def test_sgd() -> None:
    # velocities 1 and 0.5 · 1 + 2 = 2.5
    assert after_two_steps(Optimizer(sgd=Sgd(lr=0.1, momentum=0.5)), (1, 2)) == pytest.approx(1 - 0.1 - 0.25)


def test_sgd_with_nesterov() -> None:
    # steps 1 + 0.5 · 1 and 2 + 0.5 · 2.5
    assert after_two_steps(Optimizer(sgd=Sgd(lr=0.1, momentum=0.5, nesterov=True)), (1, 2)) == pytest.approx(
        1 - 0.15 - 0.325
    )


def test_adam() -> None:
    # second step: m = (0.5 · 0.5 + 0.5 · 2) / 0.75, v = (0.75 · 0.25 + 0.25 · 4) / 0.4375
    expected = 1 - 0.1 - 0.1 * (1.25 / 0.75) / ((1.1875 / 0.4375) ** 0.5)
    config = Optimizer(adam=Adam(lr=0.1, beta_1=0.5, beta_2=0.75, epsilon=1e-12))
    assert after_two_steps(config, (1, 2)) == pytest.approx(expected)


def test_rmsprop() -> None:
    # mean squares 0.25 and 0.75 · 0.25 + 0.25 · 4
    expected = 1 - 0.1 / (0.5 + 0.01) - 0.2 / (1.1875**0.5 + 0.01)
    assert after_two_steps(Optimizer(rmsprop=Rmsprop(lr=0.1, rho=0.75, epsilon=0.01)), (1, 2)) == pytest.approx(
        expected
    )


def test_each_optimizer_and_schedule_of_the_spec_has_its_row() -> None:
    assert list(OPTIMIZERS) == [field.name for field in fields(Optimizer)]
    assert list(SCHEDULES) == [field.name for field in fields(LrConfig)]
