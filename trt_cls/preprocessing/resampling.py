"""Pillow's 8-bit resize as numbers, for executors that do it themselves: which source pixels, with which weights.

Knows the filters and their rounding; nothing about pixels. The formulas are those of Pillow's Resample.c, in double and
in its order of operations, since a weight that is rounded to 22 bits must come out the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import MARGIN, covering_size, middle

Doubles = npt.NDArray[np.float64]
Table = npt.NDArray[np.int32]

PRECISION = 22
"""Bits of a weight behind the point: what 32 bits leave beside 8 bits of pixel, sign, and room for negative lobes."""
GROUP = 4
"""Weights that the GPU loads together."""
REACH = {"bilinear": 1.0, "bicubic": 2.0}
"""How far a filter looks to either side, in pixels of the larger grid."""


class Axis(NamedTuple):
    """One axis of a resize, `have` pixels to `resized`, of which `outputs` from `start` on are wanted."""

    have: int
    resized: int
    start: int
    outputs: int


def axes(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    """What `pillow.fit` does to an image of `size`, (width, height): the same axes across and down.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    target = preprocessing.width, preprocessing.height
    if preprocessing.crop == "none":
        resized, starts = target, (0, 0)
    elif size == target:
        resized, starts = size, (0, 0)
    else:
        resized = covering_size(size, (target[0] + MARGIN, target[1] + MARGIN))
        starts = middle(resized[0], target[0]), middle(resized[1], target[1])
    return Axis(size[0], resized[0], starts[0], target[0]), Axis(size[1], resized[1], starts[1], target[1])


@lru_cache(maxsize=2048)  # three batches of 256 images that all differ in size, at some 10 KB
def table(axis: Axis, filter_name: Literal["bilinear", "bicubic"]) -> Table:
    """The windows of n outputs, [n,2], and their weights, [groups,n,GROUP], each flat and filled up to whole groups.

    A window is the first source pixel and the number of pixels; weights beyond it are 0. Read-only: it is shared.
    """
    scale = axis.have / axis.resized
    stretch = max(scale, 1.0)
    reach = REACH[filter_name] * stretch
    center = (np.arange(axis.start, axis.start + axis.outputs) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), axis.have) - first
    tap = np.arange(count.max())[:, None]
    shares = np.where(tap < count, _kernel((tap + first - center + 0.5) * (1.0 / stretch), filter_name), 0.0)
    # Added up one after the other as Pillow does; numpy's sum may go by pairs, which moves the last bit.
    shares /= np.cumsum(shares, axis=0)[-1]
    weights = np.trunc(shares * (1 << PRECISION) + np.copysign(0.5, shares))
    windows = np.zeros(-(-2 * axis.outputs // GROUP) * GROUP, np.int32)
    windows[: 2 * axis.outputs] = np.stack([first, count], axis=1).ravel()
    groups = np.zeros((-(-len(weights) // GROUP), GROUP, axis.outputs), np.int32)
    groups.reshape(-1, axis.outputs)[: len(weights)] = weights
    flat = np.concatenate([windows, groups.transpose(0, 2, 1).ravel()])
    flat.flags.writeable = False
    return flat


def span(axis: Axis, filter_name: Literal["bilinear", "bicubic"]) -> tuple[int, int]:
    """The first source pixel that an axis looks at, and the one after the last."""
    windows = table(axis, filter_name)[: 2 * axis.outputs].reshape(-1, 2)
    return int(windows[0, 0]), int(windows[-1].sum())


def _kernel(x: Doubles, filter_name: Literal["bilinear", "bicubic"]) -> Doubles:
    """The filter at a distance; bicubic is Keys' with a = -0.5."""
    x = np.abs(x)
    if filter_name == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
