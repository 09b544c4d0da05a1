"""Which filters of a network stay or go together, read off the operators that torch.export writes down.

Nothing here is about families: whatever can be exported to ONNX is followed by its operators.

Torch-Pruning 1.6 was tried instead: it prunes by ratios, without TAO's threshold, granularity and equalization, takes a
slice of channels for an element-wise operator (CSPDarkNet-tiny then fails on sizes that do not fit), and fails at
ShuffleNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_cls.errors import TrtClsError
from trt_cls.pruning.channels import Part

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer."""

    name: str
    filters: int
    inputs: tuple[Part, ...]
    """What its weights read; empty where those channels are never removed, and for a depthwise convolution."""
    fan_in: int
    """Channels that a filter reads."""
    kernel: int
    """Weights for each of them."""
    positions: int
    """Of the output, for one image."""


@dataclass(frozen=True)
class Norm:
    """A batch normalisation."""

    name: str
    channels: tuple[Part, ...]


@dataclass(frozen=True)
class Group:
    """Layers that keep the same filters."""

    layers: tuple[str, ...]
    whole: str
    """Why none can be removed; empty where they can."""


@dataclass(frozen=True)
class ChannelGraph:
    """All that pruning needs to know of a network beside its weights."""

    layers: Mapping[str, Layer]
    norms: tuple[Norm, ...]
    groups: tuple[Group, ...]
    """Each layer is in one."""
    other_multiply_adds: int
    """Of convolutions and dense layers whose weights are computed, for one image."""


def channel_graph(module: nn.Module, input_shape: tuple[int, int, int]) -> ChannelGraph:
    """The graph of a network in eval mode for images of `input_shape`.

    Raises:
        TrtClsError: torch.export can't follow the network.
    """
    import torch

    from trt_cls.pruning.walk import walk

    try:
        with torch.no_grad():
            program = torch.export.export(module, (torch.zeros(2, *input_shape),), strict=False)
    except Exception as error:  # what stops the exporter comes as it is, of any kind
        raise TrtClsError(
            f"the network can't be followed by torch.export ({' '.join(str(error).split())[:200]}); expected one "
            "that can be exported to ONNX; choose another arch"
        ) from error
    return walk(program)
