"""The executor on the CPU: in C++ where the native library was built, else by Pillow, with the same pixels to the bit.

The library is `kernels/preprocess_host.cpp`: wheels bring it, and an installation from source compiles it where there
is a compiler. ctypes releases the interpreter's lock during a call, so threads run side by side.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing import pillow
from trt_cls.preprocessing.pillow import Axis, Filter, Floats, Pixels, axes, normalized_bytes

SWITCH = "TRT_CLS_NATIVE"
"""The environment variable that switches the library off where it is "0"."""
LONGEST = 1 << 20
"""Largest side before and after, in pixels: the library counts in 32 bits, and keeps 32 rows of a window."""


def executor() -> Literal["native", "pillow"]:
    """What resizes images on the CPU here."""
    return "pillow" if shared_library() is None else "native"


def preprocess(pixels: Pixels, preprocessing: Preprocessing, out: Floats | None = None) -> Floats:
    """The network's input [C,H,W] for an image as `images.read` returns it.

    A contiguous `out` of that shape is filled and returned.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    both = axes((pixels.shape[1], pixels.shape[0]), preprocessing)
    library = native_for(both)
    if library is None or preprocessing.embedded:
        return pillow.normalize(window(pixels, both, preprocessing.filter), preprocessing, out)
    if out is None:
        out = np.empty(preprocessing.input_shape, np.float32)
    preprocess_natively(library, pixels, both, preprocessing, out)
    return out


def window(pixels: Pixels, both: tuple[Axis, Axis], filter_name: Filter) -> Pixels:
    """The part of the resized image [H,W,C] that the axes across and down describe; the image where that is all."""
    if all(axis == Axis(axis.have, axis.have, 0, axis.have) for axis in both):
        return pixels
    library = native_for(both)
    if library is not None:
        return resample_natively(library, pixels, both, filter_name)
    return pillow.cropped(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), both, filter_name)


@cache
def shared_library() -> ctypes.CDLL | None:
    """The native library; None where it was not built, does not load, or is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return ctypes.CDLL(str(compiled_path()))
    except OSError:  # absent, or built for another machine
        return None


def compiled_path() -> Path:
    """Where an installation puts the native library."""
    return Path(__file__).with_name("_host.so")


def native_for(both: tuple[Axis, Axis]) -> ctypes.CDLL | None:
    """The library, where it is there and takes images of these sides."""
    return None if max(max(axis) for axis in both) > LONGEST else shared_library()


def resample_natively(library: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], filter_name: Filter) -> Pixels:
    """The wanted window of [H,W,C] resized, [outputs down, outputs across, C]."""
    across, down = both
    image = _image(pixels, both, filter_name)
    out = np.empty((down.outputs, across.outputs, pixels.shape[2]), np.uint8)
    _check(library.trt_cls_fit(*image, ctypes.c_void_p(out.ctypes.data)))
    return out


def preprocess_natively(
    library: ctypes.CDLL, pixels: Pixels, both: tuple[Axis, Axis], preprocessing: Preprocessing, out: Floats
) -> None:
    """The same window normalized into `out`, contiguous [C, outputs down, outputs across]."""
    # Held here: where two threads make the first values at once, the cache keeps those of one.
    values = normalized_bytes(preprocessing)
    image, channels = _image(pixels, both, preprocessing.filter), pixels.shape[2]
    require_array(out, np.float32, (channels, both[1].outputs, both[0].outputs), writeable=True)
    require_array(values, np.float32, (channels, 256))
    reverse = preprocessing.channel_order == "bgr"
    addresses = ctypes.c_void_p(values.ctypes.data), reverse, ctypes.c_void_p(out.ctypes.data)
    _check(library.trt_cls_preprocess(*image, *addresses))


def require_array(array: npt.NDArray[Any], dtype: type, shape: tuple[int, ...], *, writeable: bool = False) -> None:
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


def _image(
    pixels: Pixels, both: tuple[Axis, Axis], filter_name: Filter
) -> tuple[ctypes.c_void_p, int, ctypes.Array[ctypes.c_int], bool]:
    """The arguments that both calls begin with."""
    across, down = both
    channels = pixels.shape[-1] if pixels.ndim == 3 else 0
    # The library checks nothing itself.
    require_array(pixels, np.uint8, (down.have, across.have, channels))
    if channels not in (1, 3) or not all(_is_sound(axis) for axis in both):
        raise ValueError(f"{channels} channels, axes {both}; expected 1 or 3, and windows inside sides up to {LONGEST}")
    return ctypes.c_void_p(pixels.ctypes.data), channels, (ctypes.c_int * 8)(*across, *down), filter_name == "bicubic"


def _is_sound(axis: Axis) -> bool:
    inside = axis.have >= 1 and axis.start >= 0 and axis.outputs >= 1 and axis.start + axis.outputs <= axis.resized
    return inside and max(axis) <= LONGEST


def _check(status: int) -> None:
    if status:
        raise MemoryError("not enough memory to resize an image")
