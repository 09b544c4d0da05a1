"""What the families consist of and honour, measured on networks without memory for weights; nothing is typed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.models.families import FAMILIES, build
from trt_cls.models.network import Network, count_parameters
from trt_cls.spec.architectures import ARCHITECTURES, Architecture
from trt_cls.spec.experiment import ModelConfig

CLASSES = 1000
SIDE = 224
SWITCHES = ("use_batch_norm", "use_bias", "use_pooling", "retain_head")
"""Options that families ignore where they have no use for them; the others are refused there."""


@dataclass(frozen=True)
class Member:
    """One network: a family at one depth, with batch normalisation, for 1,000 classes and images of 3×224×224."""

    architecture: Architecture
    n_layers: int | None
    """None: the family comes in one depth."""
    parameters: int
    """Without the statistics of batch normalisation."""
    multiply_adds: int
    """Of convolutions and dense layers, for one image."""
    options: tuple[str, ...]
    """Fields of model_config that change the family's networks."""


def members() -> Iterator[Member]:
    """All of them, in the order of the table of architectures."""
    for architecture in ARCHITECTURES.values():
        options = _options(architecture)
        for depth in architecture.depths or (None,):
            network = _outline(_config(architecture, depth))
            yield Member(architecture, depth, count_parameters(network).trainable, multiply_adds(network), options)


def multiply_adds(network: nn.Module, shape: tuple[int, int, int] = (3, SIDE, SIDE)) -> int:
    """Of one image [C,H,W]'s way through the convolutions and dense layers of a network on the meta device."""
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.get_parameter("weight")[0].numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.empty(1, *shape, device="meta"))
    return total


def _options(architecture: Architecture) -> tuple[str, ...]:
    return (
        *_switches(_eldest(architecture.name)),
        *(["all_projections"] if architecture.has_shortcuts else []),
        *(["dropout"] if architecture.has_dropout else []),
        *(["activation"] if len(architecture.activations) > 1 else []),
    )


@cache
def _switches(arch: str) -> tuple[str, ...]:
    """The switches that give another network, at the family's smallest depth."""
    architecture = ARCHITECTURES[arch]
    config = _config(architecture, min(architecture.depths, default=None))
    plain = _layers(config)
    return tuple(name for name in SWITCHES if _layers(_switched(config, name)) != plain)


def _switched(config: ModelConfig, name: str) -> ModelConfig:
    changes: dict[str, Any] = {name: not getattr(config, name)}
    return replace(config, **changes)


def _eldest(arch: str) -> str:
    """The first family that is made by the same function: what holds for efficientnet_b0 holds for b7."""
    return next(name for name in ARCHITECTURES if FAMILIES[name].network is FAMILIES[arch].network)


def _layers(config: ModelConfig) -> list[str]:
    network = _outline(config)
    return [f"{step} {getattr(network, step.name)}" for step in network.steps]


def _config(architecture: Architecture, depth: int | None) -> ModelConfig:
    return ModelConfig(
        arch=architecture.name,
        n_layers=depth or ModelConfig().n_layers,
        input_image_size=f"3,{SIDE},{SIDE}",
        use_batch_norm=True,
    )


def _outline(config: ModelConfig) -> Network:
    with torch.device("meta"):
        return build(config, CLASSES)
