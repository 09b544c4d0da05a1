"""What networks compute, written so that two of them compare equal where they compute the same.

Operations that are equal, down to the image, are one and the same: whether two layers agree with all that precedes them
is one comparison. Flattening a map of one pixel leaves no trace, and padding that stands by itself is part of the
convolution that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int, int]
Settings = tuple[tuple[str, Any], ...]
"""What is set, with the name that a message gives it."""
Pads = tuple[int, int, int, int]
"""Top, bottom, left, right."""
NONE: Pads = (0, 0, 0, 0)
DEPTH_TOLD = 2
"""How many operations before the one in question a message names."""


@dataclass(frozen=True)
class Operation:
    """One step; two are equal when they do the same to the same."""

    kind: str
    name: str
    """The layer's, where it has weights."""
    settings: Settings
    inputs: tuple[int, ...]
    """Indices of the operations that feed it."""
    shape: Shape
    """Channels, height, width; flat values have 1×1."""


class Operations:
    """All operations of the networks that are compared; an operation is known by its index."""

    def __init__(self) -> None:
        self._all: list[Operation] = []
        self._index: dict[Operation, int] = {}

    def add(self, kind: str, shape: Shape, *inputs: int, name: str = "", settings: Settings = ()) -> int:
        """The index of an operation, the old one where it was added before."""
        operation = Operation(kind, name, settings, inputs, shape)
        if operation not in self._index:
            self._index[operation] = len(self._all)
            self._all.append(operation)
        return self._index[operation]

    def __getitem__(self, index: int) -> Operation:
        return self._all[index]

    def same_shape(self, kind: str, x: int, *others: int, name: str = "", settings: Settings = ()) -> int:
        """An operation whose output is shaped as its first input."""
        return self.add(kind, self[x].shape, x, *others, name=name, settings=settings)

    def conv(
        self, x: int, name: str, filters: int, kernel: Sequence[int], stride: Sequence[int], pads: Pads, *, bias: bool
    ) -> int:
        """A convolution; depthwise where `filters` is 0."""
        if self[x].kind == "padding" and pads == NONE:
            x, pads = self[x].inputs[0], self[x].settings[0][1]
        kind = "convolution" if filters else "depthwise convolution"
        return self.add(
            kind,
            self._swept(x, filters, kernel, stride, pads),
            x,
            name=name,
            settings=(*_window(kernel, stride, pads), ("bias", bool(bias))),
        )

    def pool(self, kind: str, x: int, kernel: Sequence[int], stride: Sequence[int], pads: Pads) -> int:
        """Max or average pooling; an average over a whole map is its mean."""
        _, height, width = self[x].shape
        if kind == "average pooling" and pads == NONE and kernel[0] >= height and kernel[1] >= width:
            return self.mean(x)
        return self.add(kind, self._swept(x, 0, kernel, stride, pads), x, settings=_window(kernel, stride, pads))

    def mean(self, x: int) -> int:
        """The mean of each channel."""
        return self.add("mean of the map", (self[x].shape[0], 1, 1), x)

    def pad(self, x: int, pads: Pads) -> int:
        """Zeros around the map."""
        channels, height, width = self[x].shape
        return self.add(
            "padding", (channels, height + pads[0] + pads[1], width + pads[2] + pads[3]), x, settings=(("zeros", pads),)
        )

    def combine(self, kind: str, *inputs: int) -> int:
        """A sum or a product: the order of its inputs is no matter. A product may have a factor for each channel."""
        largest = max(inputs, key=lambda x: self[x].shape)
        return self.add(kind, self[largest].shape, *sorted(inputs))

    def concatenate(self, *inputs: int) -> int:
        """Along the channels."""
        _, height, width = self[inputs[0]].shape
        return self.add("concatenation", (sum(self[x].shape[0] for x in inputs), height, width), *inputs)

    def second_half(self, x: int) -> int:
        """Of the channels."""
        channels, height, width = self[x].shape
        return self.add("second half", (channels - channels // 2, height, width), x)

    def flatten(self, x: int) -> int:
        """Channel by channel, row by row."""
        channels, height, width = self[x].shape
        return x if height == width == 1 else self.add("flattening", (channels * height * width, 1, 1), x)

    def dense(self, x: int, name: str, units: int, *, bias: bool) -> int:
        """A fully connected layer."""
        return self.add("dense layer", (units, 1, 1), x, name=name, settings=(("bias", bool(bias)),))

    def tell(self, index: int, depth: int = DEPTH_TOLD) -> str:
        """In words, as in "convolution kernel 3×3 stride 1×1 … of relu of bn_conv1"."""
        own = self[index]
        settings = [f"{name} {_told(value)}" for name, value in own.settings]
        text = " ".join([own.kind, *settings, "to", _told(own.shape)])
        if own.inputs and depth:
            text += " of " + " and ".join(self._short(x, depth - 1) for x in own.inputs)
        return text

    def _short(self, index: int, depth: int) -> str:
        own = self[index]
        if own.name or not own.inputs or not depth:
            return own.name or own.kind
        return f"{own.kind} of " + " and ".join(self._short(x, depth - 1) for x in own.inputs)

    def _swept(self, x: int, filters: int, kernel: Sequence[int], stride: Sequence[int], pads: Pads) -> Shape:
        channels, height, width = self[x].shape
        return (
            filters or channels,
            (height + pads[0] + pads[1] - kernel[0]) // stride[0] + 1,
            (width + pads[2] + pads[3] - kernel[1]) // stride[1] + 1,
        )


def _window(kernel: Sequence[int], stride: Sequence[int], pads: Pads) -> Settings:
    return ("kernel", tuple(kernel)), ("stride", tuple(stride)), ("zeros", pads)


def _told(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
