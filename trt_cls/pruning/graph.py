"""Which filters of a network stay or go together, read off the operators that torch.export writes down.

Nothing here is about families: whatever can be exported to ONNX is followed by its operators.

Torch-Pruning 1.6 was tried instead: it prunes by ratios, without TAO's threshold, granularity and equalization, takes a
slice of channels for an element-wise operator (CSPDarkNet-tiny then fails on sizes that do not fit), and fails at
ShuffleNet.


Where the channels of a value in a network come from, and how that changes on the value's way.

It knows shapes and numbers, no operators and no framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from trt_cls.errors import TrtClsError, one_line

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

    from trt_cls.pruning.trace import walk

    try:
        with torch.no_grad():
            program = torch.export.export(module, (torch.zeros(2, *input_shape),), strict=False)
    except Exception as error:  # what stops the exporter comes as it is, of any kind
        raise TrtClsError(
            f"the network can't be followed by torch.export ({one_line(error)[:200]}); expected one "
            "that can be exported to ONNX; choose another arch"
        ) from error
    return walk(program)


Shape = tuple[int, ...]


class Part(NamedTuple):
    """All filters of one layer, side by side."""

    layer: str | None
    """None: channels of another origin, which are never removed."""
    filters: int
    repeat: int = 1
    """How many neighbours each filter has become, as flattening a map makes them."""

    @property
    def size(self) -> int:
        """Channels."""
        return self.filters * self.repeat


class Channels(NamedTuple):
    """The channels of one value: along which axis they lie, and what they consist of."""

    axis: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """How many they are."""
        return sum(part.size for part in self.parts)


def reshaped(channels: Channels, before: Shape, after: Shape) -> Channels | None:
    """The channels after a change of shape that keeps the order of the numbers; None where it takes them apart."""
    lead, size = prod(before[: channels.axis]), before[channels.axis]
    for axis, extent in enumerate(after):
        if prod(after[:axis]) != lead:
            continue
        for end in range(channels.axis + 1, len(before) + 1):
            repeat = prod(before[channels.axis + 1 : end])
            if extent == size * repeat:
                return Channels(axis, tuple(part._replace(repeat=part.repeat * repeat) for part in channels.parts))
    return None


def moved(channels: Channels, order: Sequence[int]) -> Channels:
    """The channels after the axes of their value are put in another order."""
    return Channels(list(order).index(channels.axis), channels.parts)


def reduced(channels: Channels, axes: Sequence[int], *, kept: bool) -> Channels | None:
    """The channels after `axes` are summed up (and `kept`, with extent 1); None where theirs is among them."""
    if channels.axis in axes:
        return None
    return channels if kept else Channels(channels.axis - sum(axis < channels.axis for axis in axes), channels.parts)


def aligned(values: Sequence[Channels | None], shapes: Sequence[Shape], rank: int) -> list[Channels] | None:
    """The channels of values that meet element by element, as those of a result of `rank` axes.

    A value without channels (None) has as many of another origin as it is wide there. None where the channels lie along
    different axes or consist of parts of other sizes; a single channel, which meets all others, is no obstacle.
    """
    along = {value.axis - len(shape) for value, shape in zip(values, shapes, strict=True) if value and value.size > 1}
    if len(along) != 1:
        return None
    (from_end,) = along
    model = next(value for value in values if value and value.size > 1)
    found = []
    for value, shape in zip(values, shapes, strict=True):
        extent = shape[from_end] if -from_end <= len(shape) else 1
        if value is None and extent == model.size:
            parts = tuple(part._replace(layer=None) for part in model.parts)
        else:
            parts = value.parts if value else (Part(None, extent),)
        if extent > 1 and [part[1:] for part in parts] != [part[1:] for part in model.parts]:
            return None
        found.append(Channels(rank + from_end, parts))
    return found
