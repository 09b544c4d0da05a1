"""How the weights are updated: optimizers, learning rate schedules, and the penalty on weights, as the spec sets them.

The learning rate is a pure function of the training's progress, step / (steps per epoch · epochs): the first step has
progress 0 and no step has progress 1. The optimizer's rate is set from it before each step.

The penalty is weight_decay · Σ|w| (L1) or weight_decay · Σw² (L2, without ½). It covers the kernels of dense
convolutions and linear layers; never those of depthwise or grouped convolutions, biases or batch normalization. Frozen
kernels count in its value, which is a part of the loss, and have no gradient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.spec.experiment import CosineLr, Extensions, LrConfig, Optimizer, RegConfig, SoftAnnealLr, StepLr
from trt_cls.spec.extensions import ModernOptimizer
from trt_cls.training.optimizers import Lamb, Lion, Muon

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
    "adamw": (torch.optim.AdamW, lambda c: {"betas": (c.beta_1, c.beta_2), "eps": c.epsilon, "fused": True}),
    "lamb": (Lamb, lambda c: {"betas": (c.beta_1, c.beta_2), "eps": c.epsilon}),
    "lion": (Lion, lambda c: {"betas": (c.beta_1, c.beta_2)}),
    "muon": (Muon, lambda c: {"betas": (c.beta_1, c.beta_2), "eps": c.epsilon, "momentum": c.momentum}),
}
"""By the field of the spec's `Optimizer` or `ModernOptimizer`: the class, and its options from the field's value."""

BLOCK = re.compile(r".*?\d+[a-z]?(\.\d+)?")
"""The part of a parameter's name that names its block: block_2a of block_2a_conv_1, layer1.0 of layer1.0.conv1."""


def optimizer(config: Optimizer | ModernOptimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that is set in `config` over groups as `parameter_groups` makes them."""
    name, chosen = _the_one_set(config)
    kind, options = OPTIMIZERS[name]
    return kind(groups, lr=getattr(chosen, "lr", 0.0), **options(chosen))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group, `rate` times the group's share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def parameter_groups(model: nn.Module, penalty: Penalty, extensions: Extensions) -> list[dict[str, Any]]:
    """The trainable parameters of `model` for its optimizer, by weight decay and, with layer_decay, by layer."""
    modern, decay = extensions.optimizer, extensions.layer_decay
    groups = _decaying_groups(model, modern) if modern else penalty.parameter_groups(model)
    if decay == 1.0:
        return groups
    numbers, names = layer_numbers(model), {id(weight): name for name, weight in model.named_parameters()}
    last, split = max(numbers.values()), []
    for group in groups:
        of_layer: dict[int, list[Any]] = {}
        for weight in group["params"]:
            of_layer.setdefault(numbers[names[id(weight)]], []).append(weight)
        split += [group | {"params": of_layer[n], "share": decay ** (last - n)} for n in sorted(of_layer)]
    return split


def layer_numbers(model: nn.Module) -> Mapping[str, int]:
    """The layer of each parameter by its name, from 0: the blocks of `model` in their order; the last is the head.

    What is before the first block is one layer; norms and the like between blocks belong to the block before. timm's
    networks number their own.
    """
    if matcher := _of_timm(model, "group_matcher"):
        group: Callable[..., Mapping[str, int]] = import_module("timm.models").group_parameters
        return group(model, matcher(coarse=False), reverse=True)
    parameters = list(model.named_parameters())
    head = parameters[-1][0].rpartition(".")[0]
    blocks = {_block(name) for name, weight in parameters if weight.dim() > 1} - {""}
    layers, layer = {}, ""
    for name, _ in parameters:
        if name.rpartition(".")[0] == head:
            layer = head
        elif _block(name) in blocks:
            layer = _block(name)
        layers[name] = layer
    order = list(dict.fromkeys(layers.values()))
    return {name: order.index(layer) for name, layer in layers.items()}


def _block(name: str) -> str:
    return found[0] if (found := BLOCK.match(name)) else ""


def _of_timm(model: nn.Module, method: str) -> Callable[..., Any] | None:
    """A method that networks of timm have."""
    found: Any = getattr(model, method, None)
    return found if callable(found) else None


def _decaying_groups(model: nn.Module, config: ModernOptimizer) -> list[dict[str, Any]]:
    """Groups with and without weight decay, as timm makes them; of those for Muon, matrices are apart.

    Norms, biases, and what a network of timm names, such as embeddings of positions, do not decay.
    """
    name, chosen = _the_one_set(config)
    named = _of_timm(model, "no_weight_decay")
    kept = set(named()) if named else set()
    head = list(model.named_parameters())[-1][0].rpartition(".")[0]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for path, weight in model.named_parameters():
        if weight.requires_grad:
            decays = weight.dim() > 1 and path not in kept
            orthogonal = name == "muon" and decays and path.rpartition(".")[0] != head and min(weight.shape[:2]) > 1
            groups.setdefault((decays, orthogonal), []).append(weight)
    return [
        {"params": weights, "weight_decay": chosen.weight_decay * decays, "orthogonal": orthogonal}
        for (decays, orthogonal), weights in groups.items()
    ]


def warm_up(step: int, steps: int) -> float:
    """The share of the rate in `step`, counted from 0: it grows linearly to 1 in the last of `steps`."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def schedule(config: LrConfig, world_size: int = 1) -> Schedule:
    """The schedule that is set in `config`; its highest rate is learning_rate · world_size."""
    name, chosen = _the_one_set(config)
    return partial(SCHEDULES[name], chosen, chosen.learning_rate * world_size)


def _the_one_set(config: Optimizer | ModernOptimizer | LrConfig) -> tuple[str, Any]:
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
    def value(self, device: torch.device | None = None) -> Tensor:
        """What the penalty adds to the loss: a scalar on `device`, by default that of the first weight."""
        if not self.weights:
            return torch.zeros((), device=device)
        # by output: the float32 norm of 4.9 million weights at once is off by 1e-5 of the value, this sum by 1e-7; and
        # weights are not copied, as for their squares: 6 in place of 10 ms a step for resnet18 on a CPU
        order = 1 if self.type == "L1" else 2
        norms = [torch.linalg.vector_norm(w, order, dim=tuple(range(1, w.dim()))) for w in self.weights]
        device = device or norms[0].device
        each = torch.cat([norm.to(device) for norm in norms])
        return self.weight_decay * (each if order == 1 else each.square()).sum()

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
