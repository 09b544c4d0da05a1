"""Where expected pixels come from: keys of NVIDIA's reference files, and the 8-bit resize in plain integers."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import Floats, fit, normalize

COLOR = {
    # mode: channel order, divisor, mean, std
    "caffe": ("bgr", 1.0, (103.939, 116.779, 123.68), (1.0,) * 3),
    "caffe_custom": ("bgr", 1.0, (100.0, 110.0, 120.5), (1.0,) * 3),
    "torch": ("rgb", 255.0, (0.485, 0.456, 0.406), (0.224,) * 3),
    "tf": ("rgb", 127.5, (1.0,) * 3, (1.0,) * 3),
}
GRAY = {
    "caffe": ("gray", 1.0, (117.3786,), (1.0,)),
    "caffe_custom": ("gray", 1.0, (99.5,), (1.0,)),
    "torch": ("gray", 255.0, (0.449,), (0.224,)),
    "tf": ("gray", 127.5, (1.0,), (1.0,)),
}


def preprocessing_of(color: str, filter_name: str, crop: str, size: str, mode: str = "tf") -> Preprocessing:
    """From the parts of a key, `name|color|filter|crop|mode|HxW`; any crop but "center" is "none"."""
    channels = 3 if color == "rgb" else 1
    order, divisor, mean, std = (COLOR if channels == 3 else GRAY)[mode]
    height, width = (int(number) for number in size.split("x"))
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        crop="center" if crop == "center" else "none",
        filter=filter_name,
        channel_order=order,
        divisor=divisor,
        mean=mean,
        std=std,
    )


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Floats:
    """The network's input [C,H,W] by Pillow and numpy."""
    return normalize(fit(image, preprocessing), preprocessing)


def integer_resize(pixels: np.ndarray, width: int, height: int, filter_name: str) -> np.ndarray:
    """Antialiased resize of uint8 [H,W] or [H,W,C]: weights of 22 bits, the width first, uint8 in between."""
    across = _weights(pixels.shape[1], width, filter_name)
    down = _weights(pixels.shape[0], height, filter_name)
    return _rounded(np.tensordot(down, _rounded(np.tensordot(across, pixels, (1, 1)).swapaxes(0, 1)), (1, 0)))


def _rounded(sums: np.ndarray) -> np.ndarray:
    return np.clip((sums.astype(np.int64) + (1 << 21)) >> 22, 0, 255).astype(np.uint8)


def _weights(have: int, want: int, filter_name: str) -> np.ndarray:
    """[want,have] whole numbers, in float64 because numpy multiplies those faster and holds their sums exactly."""
    scale = have / want
    stretch = max(scale, 1.0)
    reach = (1.0 if filter_name == "bilinear" else 2.0) * stretch
    weights = np.zeros((want, have))
    for row in range(want):
        center = (row + 0.5) * scale
        first = max(int(center - reach + 0.5), 0)
        last = min(int(center + reach + 0.5), have)
        shares = [_kernel((place - center + 0.5) * (1 / stretch), filter_name) for place in range(first, last)]
        total = sum(shares)
        for place, share in enumerate(shares, first):
            weights[row, place] = math.trunc(share / total * (1 << 22) + math.copysign(0.5, share))
    return weights


def _kernel(x: float, filter_name: str) -> float:
    x = abs(x)
    if filter_name == "bilinear":
        return max(1 - x, 0.0)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
