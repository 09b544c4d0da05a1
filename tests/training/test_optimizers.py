"""Optimizers against their update rules, worked out for one weight."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any

import pytest
import torch

from support.timm_optimizers import Kind, of_timm, takes_all_at_once
from trt_cls.models import build
from trt_cls.spec.experiment import Adam, Extensions, LrConfig, ModelConfig, Optimizer, RegConfig, Rmsprop, Sgd
from trt_cls.spec.extensions import AdamW, Lamb, Lion, ModernOptimizer, Muon
from trt_cls.training.optimization import (
    OPTIMIZERS,
    SCHEDULES,
    layer_numbers,
    optimizer,
    parameter_groups,
    penalty,
    set_rate,
    warm_up,
)


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
    assert OPTIMIZERS.keys() == {field.name for block in (Optimizer, ModernOptimizer) for field in fields(block)}
    assert SCHEDULES.keys() == {field.name for field in fields(LrConfig)}


VIT = ModelConfig(arch="timm/vit_tiny_patch16_224", input_image_size="3,32,32")
NO_PENALTY = RegConfig(type="None")


def small_network() -> torch.nn.Module:
    """Kernels in NHWC, as in training: wide and tall ones, a depthwise one, norms, biases, and a head."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Conv2d(64, 64, 3, groups=64),
        torch.nn.Conv2d(64, 8, 1), torch.nn.Flatten(), torch.nn.Linear(8, 24), torch.nn.Linear(24, 4),
    )  # fmt: skip
    return network.to(memory_format=torch.channels_last)


def timm_kind(name: str, **options: Any) -> Kind:
    return lambda groups: of_timm(name)(groups, lr=0.01, **options)


def torch_adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)


@pytest.mark.parametrize(
    ("config", "reference", "exact"),
    [
        (ModernOptimizer(adamw=AdamW()), lambda: torch_adamw, False),
        (ModernOptimizer(lamb=Lamb()), lambda: timm_kind("Lamb", betas=(0.9, 0.999), eps=1e-6), None),
        (ModernOptimizer(lion=Lion()), lambda: timm_kind("Lion", betas=(0.9, 0.99)), True),
    ],
    ids=["adamw", "lamb", "lion"],
)
def test_steps_are_those_of_torch_and_timm(config: ModernOptimizer, reference: Any, exact: bool | None) -> None:
    exact = takes_all_at_once(of_timm("Lamb")) if exact is None else exact
    ours, theirs = small_network(), small_network()
    made = []
    for network, kind in ((ours, None), (theirs, reference())):
        groups = parameter_groups(network, penalty(NO_PENALTY, network), Extensions(optimizer=config))
        made.append(kind(groups) if kind else optimizer(config, groups))
    set_rate(made[0], 0.01)
    for step in range(5):
        for number, (one, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            torch.manual_seed(100 * step + number)
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for each in made:
            each.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # fused AdamW rounds its sums in another order than the plain one: one unit in the last place a step
        torch.testing.assert_close(one, other, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def muon_after_steps(made: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    for step in range(3):
        torch.manual_seed(step)
        weight.grad = torch.randn(weight.shape)
        made.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 4, 3, 3)], ids=["tall", "wide", "kernel"])
def test_muon_is_that_of_torch_and_for_kernels_that_of_timm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(shape))
    if len(shape) > 2:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    first = deepcopy(weight)
    asked = {"params": [weight], "weight_decay": 0.05, "orthogonal": True}
    made = optimizer(ModernOptimizer(muon=Muon()), [asked])
    set_rate(made, 0.01)
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw", "nesterov": True}
    if len(shape) == 2:
        theirs: torch.optim.Optimizer = torch.optim.Muon([first], **options)
    else:
        theirs = pytest.importorskip("timm.optim").Muon([first], ns_coefficients="original", **options)
    found, expected = muon_after_steps(made, weight), muon_after_steps(theirs, first)
    # the orthogonal matrix is in bfloat16, of which a sum in another order moves the last bit: 2⁻⁹ of three steps
    torch.testing.assert_close(
        found, expected, rtol=0, atol=3 * 0.01 * 0.2 * max(shape[0], weight[0].numel()) ** 0.5 / 2**9
    )


def test_muon_leaves_norms_biases_depthwise_kernels_and_the_head_to_adamw() -> None:
    network = small_network()
    groups = parameter_groups(network, penalty(NO_PENALTY, network), Extensions(optimizer=ModernOptimizer(muon=Muon())))
    names = {id(weight): name for name, weight in network.named_parameters()}
    orthogonal = {names[id(weight)] for group in groups if group["orthogonal"] for weight in group["params"]}
    assert orthogonal == {"0.weight", "3.weight", "5.weight"}
    made = optimizer(ModernOptimizer(muon=Muon()), groups)
    set_rate(made, 0.01)
    before = [weight.clone() for weight in network.parameters()]
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    made.step()
    assert not any(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    assert set(made.state[network[6].weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(made.state[network[0].weight]) == {"step", "momentum_buffer"}


def test_weight_decay_and_layers_of_a_timm_network_are_timm_s() -> None:
    timm_optim = pytest.importorskip("timm.optim")
    network = build(VIT, 3)
    asked = Extensions(optimizer=ModernOptimizer(adamw=AdamW(weight_decay=0.3)), layer_decay=0.5)
    expected = timm_optim.param_groups_layer_decay(
        network, weight_decay=0.3, no_weight_decay_list=network.no_weight_decay(), layer_decay=0.5
    )
    names = {id(weight): name for name, weight in network.named_parameters()}

    def traits(groups: list[dict[str, Any]], share: str) -> dict[str, tuple[float, float]]:
        return {names[id(w)]: (group["weight_decay"], group[share]) for group in groups for w in group["params"]}

    groups = parameter_groups(network, penalty(NO_PENALTY, network), asked)
    assert traits(groups, "share") == traits(expected, "lr_scale")


@pytest.mark.parametrize(
    ("arch", "layers", "of"),
    [
        ("resnet", 10, {"conv1.weight": 0, "bn_conv1.weight": 0, "block_1a_bn_2.bias": 1, "predictions.bias": 5}),
        ("torchvision/resnet18", 18, {"conv1.weight": 0, "bn1.weight": 0, "layer1.1.bn2.bias": 2, "fc.weight": 9}),
    ],
)
def test_layers_of_other_networks_are_their_blocks(arch: str, layers: int, of: dict[str, int]) -> None:
    config = ModelConfig(arch=arch, n_layers=layers, input_image_size="3,32,32", use_batch_norm=True)
    numbers = layer_numbers(build(config, 3))
    assert {name: numbers[name] for name in of} == of
    assert list(numbers.values()) == sorted(numbers.values())


def test_layer_decay_keeps_the_penalty_and_scales_the_rate() -> None:
    network = build(ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True), 3)
    groups = parameter_groups(
        network, penalty(RegConfig(type="L2", weight_decay=0.1), network), Extensions(layer_decay=0.5)
    )
    made = optimizer(Optimizer(sgd=Sgd()), groups)
    set_rate(made, 0.8)
    of = {id(weight): group for group in made.param_groups for weight in group["params"]}
    first, last = of[id(network.get_parameter("conv1.weight"))], of[id(network.get_parameter("predictions.weight"))]
    assert (first["weight_decay"], first["lr"]) == (0.2, 0.8 / 2**5)
    assert (last["weight_decay"], last["lr"]) == (0.2, 0.8)


def test_warm_up_reaches_the_rate_in_its_last_step() -> None:
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0
