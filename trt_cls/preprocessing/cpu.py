"""From decoded pixels to the network's input on the CPU: by the native library where it was built, else by Pillow.

The pixels are the same to the bit, and `pillow` defines them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing import native, pillow
from trt_cls.preprocessing.pillow import Floats, Pixels
from trt_cls.preprocessing.resampling import Axis, axes


def executor() -> Literal["native", "pillow"]:
    """What resizes images on the CPU here."""
    return "pillow" if native.shared_library() is None else "native"


def preprocess(pixels: Pixels, preprocessing: Preprocessing, out: Floats | None = None) -> Floats:
    """The network's input [C,H,W] for an image as `images.read` returns it.

    `out`, of that shape and contiguous, is filled and returned where it is given.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    both = axes((pixels.shape[1], pixels.shape[0]), preprocessing)
    loaded = native.loaded_for(both)
    if loaded is None or preprocessing.embedded:
        return pillow.normalize(window(pixels, both, preprocessing.filter), preprocessing, out)
    if out is None:
        out = np.empty(preprocessing.input_shape, np.float32)
    native.preprocess(loaded, pixels, both, preprocessing, out)
    return out


def fit(pixels: Pixels, preprocessing: Preprocessing) -> Pixels:
    """The image resized and cropped to the network's size, as `pillow.fit` does.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    return window(pixels, axes((pixels.shape[1], pixels.shape[0]), preprocessing), preprocessing.filter)


def window(pixels: Pixels, both: tuple[Axis, Axis], filter_name: Literal["bilinear", "bicubic"]) -> Pixels:
    """The part of the resized image [H,W,C] that the axes across and down name; the image itself where that is all."""
    if all(axis == Axis(axis.have, axis.have, 0, axis.have) for axis in both):
        return pixels
    loaded = native.loaded_for(both)
    if loaded is not None:
        return native.resample(loaded, pixels, both, filter_name)
    across, down = both
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = pillow.resize(image, (across.resized, down.resized), filter_name)
    right, bottom = across.start + across.outputs, down.start + down.outputs
    return pillow.hwc(resized.crop((across.start, down.start, right, bottom)))
