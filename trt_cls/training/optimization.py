"""How the weights are updated: optimizers, learning rate schedules, and the penalty on weights, as the spec sets them.

The learning rate is a pure function of the training's progress, step / (steps per epoch · epochs): the first step has
progress 0 and no step has progress 1. The optimizer's rate is set from it before each step.

The penalty is weight_decay · Σ|w| (L1) or weight_decay · Σw² (L2, without ½). It covers the kernels of dense
convolutions and linear layers; never those of depthwise or grouped convolutions, biases or batch normalization. Frozen
kernels count in its value, which is a part of the loss, and have no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.spec.experiment import CosineLr, LrConfig, Optimizer, RegConfig, SoftAnnealLr, StepLr

Schedule = Callable[[float], float]
"""Progress in [0, 1] → learning rate."""

WARM_UP_START = 3e-4
"""Where soft_anneal's warm-up begins, unless learning_rate is smaller."""

ROUNDING = 1e-9
"""0.29 · 100 / 29 is 0.9999999999999999 in floating point, and is meant to be one full drop."""

# Fused, SGD takes a fourth and Adam a ninth of the time on a CPU (12 million weights); RMSprop has no fused form.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[Any], dict[str, Any]]]] = {
    "sgd": (torch.optim.SGD, lambda c: {"momentum": c.momentum, "nesterov": c.nesterov, "fused": True}),
    "adam": (torch.optim.Adam, lambda c: {"betas": (c.beta_1, c.beta_2), "eps": c.epsilon, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, lambda c: {"alpha": c.rho, "eps": c.epsilon}),
}
"""By the field of the spec's `Optimizer`: the class, and its options from the field's value, which has an `lr` too."""


def optimizer(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that is set in `config` over parameter groups as `Penalty.parameter_groups` makes them."""
    name, chosen = _the_one_set(config)
    kind, options = OPTIMIZERS[name]
    return kind(groups, lr=chosen.lr, **options(chosen))


def schedule(config: LrConfig, world_size: int = 1) -> Schedule:
    """The schedule that is set in `config`; its highest rate is learning_rate · world_size."""
    name, chosen = _the_one_set(config)
    return partial(SCHEDULES[name], chosen, chosen.learning_rate * world_size)


def _the_one_set(config: Optimizer | LrConfig) -> tuple[str, Any]:
    return next((field.name, value) for field in fields(config) if (value := getattr(config, field.name)) is not None)


def _step(config: StepLr, base: float, progress: float) -> float:
    drops = math.floor(progress * 100 / config.step_size + ROUNDING)
    return base * config.gamma**drops


def _soft_anneal(config: SoftAnnealLr, base: float, progress: float) -> float:
    if progress < config.soft_start:
        start = min(WARM_UP_START, config.learning_rate)
        return start + (base - start) * progress / config.soft_start
    passed = sum(progress > point for point in config.annealing_points)
    return base / config.annealing_divider**passed


def _cosine(config: CosineLr, base: float, progress: float) -> float:
    lowest = base * config.min_lr_ratio
    if progress < config.soft_start:
        return lowest + (base - lowest) * progress / config.soft_start
    share = (progress - config.soft_start) / (1 - config.soft_start)
    return lowest + (base - lowest) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[..., float]] = {"step": _step, "soft_anneal": _soft_anneal, "cosine": _cosine}
"""By the field of the spec's `LrConfig`: the learning rate from its value, the highest rate and the progress."""


@dataclass(frozen=True)
class Penalty:
    """The penalty on the weights of one network."""

    type: str
    """"L1", "L2" or "None"."""
    weight_decay: float
    weights: tuple[nn.Parameter, ...]

    @torch.no_grad()
    def value(self) -> Tensor:
        """What the penalty adds to the loss (a scalar)."""
        if not self.weights:
            return torch.zeros(())
        # not get_total_norm: its float32 sum over 4.9 million weights was off by 1.6e-5 of the value, this one by 1e-7
        sums = [(weight.abs() if self.type == "L1" else weight.square()).sum() for weight in self.weights]
        return self.weight_decay * torch.stack([value.to(sums[0].device) for value in sums]).sum()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters of `model` for an optimizer, which adds L2's gradient through its weight_decay."""
        penalized = {id(weight) for weight in self.weights} if self.type == "L2" else set()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            # torch adds weight_decay · w to the gradient, the derivative of weight_decay / 2 · w²
            {"params": [p for p in trainable if id(p) in penalized], "weight_decay": 2 * self.weight_decay},
            {"params": [p for p in trainable if id(p) not in penalized], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def add_l1_gradient(self) -> None:
        """Adds L1's gradient, weight_decay · sign(w), to the gradients; L2's is added by the optimizer."""
        if self.type != "L1":
            return
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.weight_decay)


def penalty(config: RegConfig, model: nn.Module) -> Penalty:
    """The penalty that `config` asks for, on the kernels of `model` that are in its scope."""
    if config.type == "None":
        return Penalty("None", 0.0, ())
    scope = {name.strip().lower() for name in config.scope.split(",")}
    kernels = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Conv2d) and module.groups == 1 and "conv2d" in scope)
        or (isinstance(module, nn.Linear) and "dense" in scope)
    }
    weights = tuple(parameter for name, parameter in model.named_parameters() if name in kernels)
    return Penalty(config.type, config.weight_decay, weights)
