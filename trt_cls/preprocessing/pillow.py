"""The executor on the CPU and the reference for all others: Pillow's resize, then float32 arithmetic.

Pillow's 8-bit resize is integer arithmetic and always antialiased. Two of its liberties are not taken: `resize(box=…)`
holds the box in float32, which changes 2 % of the pixels, so crops are cut from the whole resized image; and Pillow 13
begins with the height where that is cheaper, which changes up to a fifth of them, so `resize` fixes the order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MARGIN = 32
"""A center crop is cut from an image that covers the input with this many pixels to spare."""
MAX_PIXELS = 2**27
"""Where the resized image would be larger, a long thin picture is refused instead of filling the memory."""


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Floats:
    """The network's input [C,H,W] for an image as `images.decode` returns it.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    return normalize(fit(image, preprocessing), preprocessing)


def fit(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The image resized and cropped to the network's size, [H,W,C], in RGB order.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    target = preprocessing.width, preprocessing.height
    if preprocessing.crop == "none":
        return hwc(resize(image, target, preprocessing.filter))
    if image.size == target:
        return hwc(image)
    size = covering_size(image.size, (target[0] + MARGIN, target[1] + MARGIN))
    resized = resize(image, size, preprocessing.filter)
    left, top = (middle(have, want) for have, want in zip(size, target, strict=True))
    return hwc(resized.crop((left, top, left + target[0], top + target[1])))


def resize(image: Image.Image, size: tuple[int, int], filter_name: Literal["bilinear", "bicubic"]) -> Image.Image:
    """The image in (width, height): the width first, rounded to 8 bits, then the height."""
    resample = FILTERS[filter_name]
    return image.resize((size[0], image.height), resample).resize(size, resample)


def covering_size(size: tuple[int, int], target: tuple[float, float]) -> tuple[int, int]:
    """The smallest size with the aspect of `size` that covers `target`, rounded down; (width, height) all three.

    Rounding can leave it one pixel short of a whole target, as it does in TAO.

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
    """Where `want` pixels in the middle of `have` begin, rounded as TAO does.

    Half a pixel goes to the even side, twice: round(7 / 2) is 4 and round(5 / 2) is 2.
    """
    return round(have / 2) - round(want / 2)


def normalize(pixels: Pixels, preprocessing: Preprocessing, out: Floats | None = None) -> Floats:
    """`(pixels / divisor - mean) / std` in float32, one operation after the other, from [H,W,C] to [C,H,W].

    `out`, of that shape and contiguous, is filled and returned where it is given. Where the graph does it all, the
    pixels stay as they are.
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


def hwc(image: Image.Image | Pixels) -> Pixels:
    """The pixels of an image of mode RGB or L, [H,W,C]; an array of that shape as it is."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
