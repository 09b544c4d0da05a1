"""The penalty against autograd on the formula itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trt_cls.spec.experiment import RegConfig
from trt_cls.training.optimization import penalty


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 4, 2),
    )


def formula(type_: str) -> Callable[[Tensor], Tensor]:
    return (lambda w: w.abs().sum()) if type_ == "L1" else (lambda w: (w * w).sum())


SCOPES = [
    ("Conv2D,Dense", ["0", "3", "5"]),
    ("Conv2D, Dense", ["0", "3", "5"]),
    ("conv2d", ["0", "3"]),
    ("Dense", ["5"]),
]


@pytest.mark.parametrize("type_", ["L1", "L2"])
@pytest.mark.parametrize(("scope", "layers"), SCOPES)
def test_value_covers_the_dense_kernels_in_scope(type_: str, scope: str, layers: list[str]) -> None:
    model = network()
    expected = sum(0.01 * formula(type_)(model.get_parameter(f"{layer}.weight").detach()).item() for layer in layers)
    assert penalty(RegConfig(type=type_, scope=scope, weight_decay=0.01), model).value().item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("type_", ["L1", "L2"])
def test_step_is_that_of_the_penalised_loss(type_: str) -> None:
    images = torch.randn(2, 3, 6, 6)
    plain, summed = network(), network()

    regularizer = penalty(RegConfig(type=type_, weight_decay=0.05), plain)
    optimizer = torch.optim.SGD(regularizer.parameter_groups(plain), lr=0.1, momentum=0.9)
    by_formula = torch.optim.SGD(summed.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        plain(images).square().mean().backward()
        regularizer.add_l1_gradient()
        optimizer.step()
        by_formula.zero_grad()
        extra = sum(0.05 * formula(type_)(summed.get_parameter(f"{layer}.weight")) for layer in "035")
        (summed(images).square().mean() + extra).backward()
        by_formula.step()

    for (name, parameter), other in zip(plain.named_parameters(), summed.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6, msg=name)


def test_frozen_kernels_count_in_the_value_and_are_not_trained() -> None:
    model = network()
    config = RegConfig(type="L2", weight_decay=0.01)
    before = penalty(config, model).value()
    model[0].requires_grad_(False)
    frozen = penalty(config, model)
    assert frozen.value() == before
    trained = {id(parameter) for group in frozen.parameter_groups(model) for parameter in group["params"]}
    assert id(model[0].weight) not in trained
    assert len(trained) == len(list(model.parameters())) - 2


def test_type_none_adds_nothing() -> None:
    nothing = penalty(RegConfig(type="None", weight_decay=0.5), network())
    assert nothing.value() == 0
    assert {group["weight_decay"] for group in nothing.parameter_groups(network())} == {0.0}
