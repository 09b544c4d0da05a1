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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import Floats, Pixels, normalize
from trt_cls.preprocessing.resampling import Axis

SWITCH = "TRT_CLS_NATIVE"
"""The environment variable that does without the library where it is "0"."""

LONGEST = 1 << 20
"""Of a side before and after, in pixels: the library counts in 32 bits, and keeps 32 rows of a window."""


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


def loaded_for(both: tuple[Axis, Axis]) -> ctypes.CDLL | None:
    """The library, where it is there and takes images of these sides."""
    return None if max(max(axis) for axis in both) > LONGEST else shared_library()


def resample(
    loaded: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], filter_name: Literal["bilinear", "bicubic"]
) -> Pixels:
    """The wanted window of [H,W,C] resized, [outputs down, outputs across, C]."""
    across, down = both
    image = _image(pixels, both, filter_name)
    out = np.empty((down.outputs, across.outputs, pixels.shape[2]), np.uint8)
    _done(loaded.trt_cls_fit(*image, ctypes.c_void_p(out.ctypes.data)))
    return out


def preprocess(
    loaded: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], preprocessing: Preprocessing, out: Floats
) -> None:
    """The same window normalised into `out`, contiguous [C, outputs down, outputs across]."""
    # Held here: where two threads make the first values at once, the cache keeps those of one.
    values = _values(preprocessing)
    image, channels = _image(pixels, both, preprocessing.filter), pixels.shape[2]
    require(out, np.float32, (channels, both[1].outputs, both[0].outputs), writeable=True)
    require(values, np.float32, (channels, 256))
    _done(
        loaded.trt_cls_preprocess(
            *image,
            ctypes.c_void_p(values.ctypes.data),
            preprocessing.channel_order == "bgr",
            ctypes.c_void_p(out.ctypes.data),
        )
    )


def _image(
    pixels: Pixels, both: tuple[Axis, Axis], filter_name: str
) -> tuple[ctypes.c_void_p, int, ctypes.Array[ctypes.c_int], bool]:
    """The arguments that both calls begin with."""
    across, down = both
    channels = pixels.shape[-1] if pixels.ndim == 3 else 0
    # The library believes what it is told: these hold whatever a caller does.
    require(pixels, np.uint8, (down.have, across.have, channels))
    if channels not in (1, 3) or not all(_sound(axis) for axis in both):
        raise ValueError(f"{channels} channels, axes {both}; expected 1 or 3, and windows inside sides up to {LONGEST}")
    return ctypes.c_void_p(pixels.ctypes.data), channels, (ctypes.c_int * 8)(*across, *down), filter_name == "bicubic"


def require(array: npt.NDArray[Any], dtype: type, shape: tuple[int, ...], *, writeable: bool = False) -> None:
    """Refuses an array that native code would misread.

    Raises:
        ValueError: it has another type or shape, is not contiguous, or must be written and can't be.
    """
    sound = array.flags.c_contiguous and array.flags.aligned and (array.flags.writeable or not writeable)
    if array.dtype != dtype or array.shape != shape or not sound:
        raise ValueError(
            f"an array of {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}, contiguous"
            f"{' and writeable' if writeable else ''}"
        )


def _sound(axis: Axis) -> bool:
    inside = axis.have >= 1 and axis.start >= 0 and axis.outputs >= 1 and axis.start + axis.outputs <= axis.resized
    return inside and max(axis) <= LONGEST


@cache
def _values(preprocessing: Preprocessing) -> Floats:
    """What each shade of each of the network's channels becomes, [C,256], by numpy's own arithmetic."""
    shades = np.arange(256, dtype=np.uint8)[None, :, None]
    return normalize(np.repeat(shades, preprocessing.channels, axis=2), preprocessing)[:, 0].copy()


def _done(status: int) -> None:
    if status:
        raise MemoryError("not enough memory to resize an image")
