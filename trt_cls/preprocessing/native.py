"""The executor in C++: `kernels/preprocess_host.cpp`, built when the package is installed where there is a compiler.

Knows the library's calls; which pixels are wanted comes from `resampling`. ctypes gives up the interpreter's lock
during a call, so threads run side by side.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import Floats, Pixels, normalize
from trt_cls.preprocessing.resampling import Axis

SWITCH = "TRT_CLS_NATIVE"
"""The environment variable that does without the library where it is "0"."""


@cache
def shared_library() -> ctypes.CDLL | None:
    """The library; None where it was not built, does not load, or is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_host{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                return None
    return None


def resample(
    loaded: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], filter_name: Literal["bilinear", "bicubic"]
) -> Pixels:
    """The wanted window of [H,W,C] resized, [outputs down, outputs across, C]."""
    across, down = both
    out = np.empty((down.outputs, across.outputs, pixels.shape[2]), np.uint8)
    _done(loaded.trt_cls_fit(*_image(pixels, both, filter_name), ctypes.c_void_p(out.ctypes.data)))
    return out


def preprocess(
    loaded: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], preprocessing: Preprocessing, out: Floats
) -> None:
    """The same window normalised into `out`, contiguous [C, outputs down, outputs across]."""
    # Held here: where two threads make the first values at once, the cache keeps those of one.
    values = _values(preprocessing)
    _done(
        loaded.trt_cls_preprocess(
            *_image(pixels, both, preprocessing.filter),
            ctypes.c_void_p(values.ctypes.data),
            preprocessing.channel_order == "bgr",
            ctypes.c_void_p(out.ctypes.data),
        )
    )


def _image(
    pixels: Pixels, both: tuple[Axis, Axis], filter_name: str
) -> tuple[ctypes.c_void_p, int, ctypes.Array[ctypes.c_int], bool]:
    """The arguments that both calls begin with."""
    (height, width, channels), (across, down) = pixels.shape, both
    # The library believes what it is told: these hold whatever a caller does.
    if (across.have, down.have) != (width, height) or not pixels.flags.c_contiguous or pixels.dtype != np.uint8:
        raise ValueError(f"pixels {pixels.dtype} {pixels.shape} are not contiguous or not those of {both}")
    return ctypes.c_void_p(pixels.ctypes.data), channels, (ctypes.c_int * 8)(*across, *down), filter_name == "bicubic"


@cache
def _values(preprocessing: Preprocessing) -> Floats:
    """What each shade of each of the network's channels becomes, [C,256], by numpy's own arithmetic."""
    shades = np.arange(256, dtype=np.uint8)[None, :, None]
    return normalize(np.repeat(shades, preprocessing.channels, axis=2), preprocessing)[:, 0].copy()


def _done(status: int) -> None:
    if status:
        raise MemoryError("not enough memory to resize an image")
