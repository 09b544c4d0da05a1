"""The optimizers of the spec, out of torch.optim. Their learning rate is set before each step by the schedule.

Fused, SGD takes a fourth and Adam a ninth of the time on a CPU (12 million weights); RMSprop has no such form.


Learning rates as documented: pure functions of the training's progress.

Progress is the share of the whole training that lies behind a step, step / (steps per epoch · epochs): the first step
has progress 0 and none has progress 1. Nothing here knows about optimizers.


The penalty on weights: weight_decay · Σ|w| (L1) or weight_decay · Σw² (L2, without ½), and its gradient.

It covers the kernels of dense convolutions and linear layers; never those of depthwise or grouped convolutions, biases
or batch normalisation. Frozen kernels count in the value, as a part of the loss, and have no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.spec.experiment import CosineLr, LrConfig, Optimizer, RegConfig, SoftAnnealLr, StepLr


def optimizer(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that is set in `config` over parameter groups as `Penalty.parameter_groups` makes them."""
    if config.sgd is not None:
        sgd = config.sgd
        return torch.optim.SGD(groups, lr=sgd.lr, momentum=sgd.momentum, nesterov=sgd.nesterov, fused=True)
    if config.adam is not None:
        adam = config.adam
        return torch.optim.Adam(groups, lr=adam.lr, betas=(adam.beta_1, adam.beta_2), eps=adam.epsilon, fused=True)
    if config.rmsprop is not None:
        rmsprop = config.rmsprop
        return torch.optim.RMSprop(groups, lr=rmsprop.lr, alpha=rmsprop.rho, eps=rmsprop.epsilon)
    raise ValueError("optimizer is empty")


Schedule = Callable[[float], float]
"""Progress in [0, 1] → learning rate."""

WARM_UP_START = 3e-4
"""Where soft_anneal's warm-up begins, unless learning_rate is smaller."""

ROUNDING = 1e-9
"""0.29 · 100 / 29 is 0.9999999999999999 in floating point, and is meant to be one whole drop."""


def schedule(config: LrConfig, world_size: int = 1) -> Schedule:
    """The schedule that is set in `config`; its highest rate is learning_rate · world_size."""
    if config.step is not None:
        return _step(config.step, world_size)
    if config.soft_anneal is not None:
        return _soft_anneal(config.soft_anneal, world_size)
    if config.cosine is not None:
        return _cosine(config.cosine, world_size)
    raise ValueError("lr_config is empty")


def _step(config: StepLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size

    def rate(progress: float) -> float:
        drops = math.floor(progress * 100 / config.step_size + ROUNDING)
        return base * config.gamma**drops

    return rate


def _soft_anneal(config: SoftAnnealLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size
    start = min(WARM_UP_START, config.learning_rate)

    def rate(progress: float) -> float:
        if progress < config.soft_start:
            return start + (base - start) * progress / config.soft_start
        passed = sum(progress > point for point in config.annealing_points)
        return base / config.annealing_divider**passed

    return rate


def _cosine(config: CosineLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size
    lowest = base * config.min_lr_ratio

    def rate(progress: float) -> float:
        if progress < config.soft_start:
            return lowest + (base - lowest) * progress / config.soft_start
        share = (progress - config.soft_start) / (1 - config.soft_start)
        return lowest + (base - lowest) * (1 + math.cos(math.pi * share)) / 2

    return rate


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
        penalised = {id(weight) for weight in self.weights} if self.type == "L2" else set()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            # torch adds weight_decay · w to the gradient, the derivative of weight_decay / 2 · w²
            {"params": [p for p in trainable if id(p) in penalised], "weight_decay": 2 * self.weight_decay},
            {"params": [p for p in trainable if id(p) not in penalised], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def add_l1_gradient(self) -> None:
        """Adds L1's gradient, weight_decay · sign(w), to the gradients; L2's is the optimizer's work."""
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
