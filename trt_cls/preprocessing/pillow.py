"""Pillow's 8-bit resize and the center crop, which define the pixels: by Pillow, and as weights for other executors.

Pillow's resize is integer arithmetic and always antialiased. Two of its shortcuts are not used: `resize(box=…)` holds
the box in float32, which changes 2 % of the pixels, so crops are cut from the resized image; and Pillow 13 begins with
the height where that is cheaper, which changes up to a fifth of them, so `resize` fixes the order.

The weights follow Pillow's Resample.c in double precision and in its order of operations, because a weight that is
rounded to 22 bits must come out the same.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
FilterTable = npt.NDArray[np.int32]
Filter = Literal["bilinear", "bicubic"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
REACH = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the width of a filter, in pixels of the larger grid."""
PRECISION = 22
"""Fraction bits of a weight: what 32 bits leave beside 8 bits of pixel, sign, and headroom for negative lobes."""
GROUP = 4
"""Weights that the GPU loads together."""
MARGIN = 32
"""A center crop is cut from an image that covers the input with this many pixels to spare."""
MAX_PIXELS = 2**27
"""Where the resized image would be larger, a long thin image is refused instead of filling the memory."""


class Axis(NamedTuple):
    """One axis of a resize from `have` to `resized` pixels, of which `outputs` are taken, from `start` on."""

    have: int
    resized: int
    start: int
    outputs: int


def axes(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    """How an image of `size`, (width, height), is resized and cropped: the axes across and down.

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


def covering_size(size: tuple[int, int], target: tuple[float, float]) -> tuple[int, int]:
    """The smallest size with the aspect ratio of `size` that covers `target`, rounded down; all are (width, height).

    Rounding can leave it one pixel short of an integer target, as it does in TAO.

    Raises:
        DataError: it has more than MAX_PIXELS.
    """
    ratio = max(want / have for want, have in zip(target, size, strict=True))
    width, height = (int(have * ratio) for have in size)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{size[0]}×{size[1]} pixels are too long and thin: covering the crop takes {width}×{height}; "
            "cut the image, or switch crops off"
        )
    return width, height


def middle(have: int, want: int) -> int:
    """The first of `want` pixels in the middle of `have`, rounded as TAO does.

    Half a pixel goes to the even side, twice: round(7 / 2) is 4 and round(5 / 2) is 2.
    """
    return round(have / 2) - round(want / 2)


def fit(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The image resized and cropped to the network's size, [H,W,C], in RGB order.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    return cropped(image, axes(image.size, preprocessing), preprocessing.filter)


def cropped(image: Image.Image, both: tuple[Axis, Axis], filter_name: Filter) -> Pixels:
    """The part [H,W,C] of the resized image that the axes across and down describe."""
    across, down = both
    resized = resize(image, (across.resized, down.resized), filter_name)
    right, bottom = across.start + across.outputs, down.start + down.outputs
    return hwc(resized.crop((across.start, down.start, right, bottom)))


def resize(image: Image.Image, size: tuple[int, int], filter_name: Filter) -> Image.Image:
    """The image in (width, height): the width first, rounded to 8 bits, then the height."""
    resample = FILTERS[filter_name]
    return image.resize((size[0], image.height), resample).resize(size, resample)


def hwc(image: Image.Image | Pixels) -> Pixels:
    """The pixels of an image of mode RGB or L, [H,W,C]; an array of that shape as it is."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def normalize(pixels: Pixels, preprocessing: Preprocessing, out: Floats | None = None) -> Floats:
    """`(pixels / divisor - mean) / std` in float32, one operation after the other, from [H,W,C] to [C,H,W].

    A contiguous `out` of that shape is filled and returned. Where the graph normalizes, the pixels stay as they are.
    """
    if preprocessing.embedded:
        if out is None:
            out = np.empty(preprocessing.input_shape, preprocessing.input_type)
        out[...] = pixels
        return out
    planes = pixels.transpose(2, 0, 1)
    if preprocessing.channel_order == "bgr":
        planes = planes[::-1]
    if out is None:
        out = np.empty(planes.shape, np.float32)
    out[...] = planes
    out /= np.float32(preprocessing.divisor)
    out -= np.array(preprocessing.mean, np.float32)[:, None, None]
    out /= np.array(preprocessing.std, np.float32)[:, None, None]
    return out


def pixels_from_input(images: Floats, preprocessing: Preprocessing) -> Pixels:
    """The inverse of `normalize`, to look at: network input [n,C,H,W] as pixels [n,H,W,C], rounded and clipped."""
    if preprocessing.embedded:
        return images.astype(np.uint8)
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    pixels = (images.transpose(0, 2, 3, 1) * std + mean) * np.float32(preprocessing.divisor)
    if preprocessing.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    return pixels.round().clip(0, 255).astype(np.uint8)


@cache
def normalized_bytes(preprocessing: Preprocessing) -> Floats:
    """The network's input for each value of a byte in each of its channels, [C,256]."""
    values = np.arange(256, dtype=np.uint8)[None, :, None]
    return normalize(np.repeat(values, preprocessing.channels, axis=2), preprocessing)[:, 0].copy()


@lru_cache(maxsize=2048)  # three batches of 256 images that all differ in size, at some 10 KB
def filter_table(axis: Axis, filter_name: Filter) -> FilterTable:
    """The windows of n outputs, [n,2], and their weights, [groups,n,GROUP], each flat and padded to full groups.

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


def span(axis: Axis, filter_name: Filter) -> tuple[int, int]:
    """The first source pixel that an axis reads, and the one after the last."""
    windows = filter_table(axis, filter_name)[: 2 * axis.outputs].reshape(-1, 2)
    return int(windows[0, 0]), int(windows[-1].sum())


def _kernel(x: Doubles, filter_name: Filter) -> Doubles:
    """The filter at a distance; bicubic is Keys' with a = -0.5."""
    x = np.abs(x)
    if filter_name == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
