"""The channel graph: where the channels that each layer of a network reads come from, and which filters stay together.

Data and arithmetic on shapes. Does not know: operators, weights, torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class ChannelPart(NamedTuple):
    """The channels that one layer's filters became, side by side."""

    layer: str | None
    """None: channels of another origin, never removed."""
    filters: int
    repeat: int = 1
    """Channels per filter: more than one after a map was flattened."""

    @property
    def size(self) -> int:
        """Number of channels."""
        return self.filters * self.repeat


class Channels(NamedTuple):
    """The channels of one value: their axis, and the parts they consist of."""

    axis: int
    parts: tuple[ChannelPart, ...]

    @property
    def size(self) -> int:
        """Number of channels."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or dense layer."""

    name: str
    filters: int
    inputs: tuple[ChannelPart, ...]
    """The channels that it reads; empty where they are never removed, and for a depthwise convolution."""
    fan_in: int
    """Channels that a filter reads."""
    kernel: int
    """Weights per channel."""
    positions: int
    """Output positions of one image."""


@dataclass(frozen=True)
class Norm:
    """A batch normalization."""

    name: str
    channels: tuple[ChannelPart, ...]


@dataclass(frozen=True)
class Group:
    """Layers that must keep the same filters."""

    layers: tuple[str, ...]
    unprunable: str
    """Why no filter can be removed; empty where filters can."""


@dataclass(frozen=True)
class ChannelGraph:
    """What pruning needs to know about a network, besides its weights."""

    layers: Mapping[str, WeightedLayer]
    norms: tuple[Norm, ...]
    groups: tuple[Group, ...]
    """Each layer is in exactly one."""
    other_multiply_adds: int
    """Those of layers whose weights are computed, for one image."""


def reshaped(channels: Channels, before: Shape, after: Shape) -> Channels | None:
    """The channels after a reshape; None where it splits channels up."""
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
    """The channels after a permutation of the axes."""
    return Channels(list(order).index(channels.axis), channels.parts)


def reduced(channels: Channels, axes: Sequence[int], *, kept: bool) -> Channels | None:
    """The channels after a reduction over `axes` (`kept` with size 1); None where their own axis is reduced."""
    if channels.axis in axes:
        return None
    return channels if kept else Channels(channels.axis - sum(axis < channels.axis for axis in axes), channels.parts)


def aligned(values: Sequence[Channels | None], shapes: Sequence[Shape], rank: int) -> list[Channels] | None:
    """The channels of values that are combined element by element, on the axes of a result of `rank` axes.

    A value without channels (None) has channels of another origin there. None where the channels lie along different
    axes or consist of parts of other sizes; a single channel, which is broadcast, fits all.
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
            parts = value.parts if value else (ChannelPart(None, extent),)
        if extent > 1 and [part[1:] for part in parts] != [part[1:] for part in model.parts]:
            return None
        found.append(Channels(rank + from_end, parts))
    return found
