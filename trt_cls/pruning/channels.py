"""Where the channels of a value in a network come from, and how that changes on the value's way.

It knows shapes and numbers, no operators and no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

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
