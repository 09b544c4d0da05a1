"""From an image file to 8-bit RGB or gray pixels.

Pillow decides what an image is. simplejpeg, which is optional, decodes plain JPEG files faster, to the same bits. Does
not know: files, sizes and networks.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from trt_cls.errors import DataError
from trt_cls.preprocessing.cpu import SWITCH
from trt_cls.preprocessing.image_file import ALONE_PIXELS, Source, opened_image
from trt_cls.preprocessing.pillow import Pixels, hwc

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

SAME_BY_SIMPLEJPEG = {("RGB", 3), ("L", 3), ("L", 1)}
"""Modes of JPEG files and numbers of channels for which simplejpeg gives the pixels that Pillow gives."""


def decode(source: Source, channels: int) -> Image.Image:
    """The pixels of `source` as `eight_bit` returns them.

    The orientation that EXIF, XMP or TIFF state is ignored in every format, as in TAO: pixels come as they are stored.

    Raises:
        DataError: no image, a broken one or one that is refused; the message starts with its path.
        TrtClsError: there is not enough memory for it.
    """
    with opened_image(source) as (image, _):
        return eight_bit(loaded(image), channels)


def read(source: Source, channels: int) -> Pixels:
    """The pixels that `decode` returns as an array [H,W,C].

    Raises:
        DataError, TrtClsError: as `decode`.
    """
    with opened_image(source) as (image, content):
        pixels = _pixels_of_jpeg(image, content, channels)
        if pixels is None:
            pixels = _array(eight_bit(loaded(image), channels))
        image.close()  # Pillow's images are in reference cycles: memory would be freed by a later garbage collection
        return pixels


def loaded(image: Image.Image) -> Image.Image:
    """An image from `image_file.opened_image`, decoded, with its pixels as they are stored in the file."""
    if image.format == "TIFF":
        from trt_cls.preprocessing.tiff import loaded_tiff

        return loaded_tiff(cast("TiffImageFile", image))
    image.load()
    return image


@cache
def simplejpeg() -> ModuleType | None:
    """The library that decodes plain JPEG files; None where it is not installed or switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return import_module("simplejpeg")
    except ImportError:
        return None


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """`image`, of any mode, as mode RGB (3 channels) or L (1 channel).

    Transparency is dropped without compositing, as in TAO. Of 16-bit gray pixels the high byte is taken (`value >> 8`),
    as Pillow does for 16-bit color; its own conversion of gray would clip most to white.

    Raises:
        DataError: the pixels are floating-point, or wider than 16 bits: their range is not known.
    """
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save the image with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError(
                "pixels wider than 16 bits have no known range; save the image with 8 or 16 bits per channel"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:  # Pillow would convert the transparent color too, and warn where there are several
        image = image.copy()
        del image.info["transparency"]
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # it would be copied otherwise


def _array(image: Image.Image) -> Pixels:
    """The pixels [H,W,C]; of a huge picture in bands, because Pillow's way takes twice their memory."""
    width, height = image.size
    if width * height <= ALONE_PIXELS:
        return hwc(image)
    pixels = np.empty((height, width, len(image.getbands())), np.uint8)
    rows = max(1, ALONE_PIXELS // 8 // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = hwc(image.crop((0, top, width, min(top + rows, height))))
    return pixels


def _pixels_of_jpeg(image: Image.Image, content: bytes, channels: int) -> Pixels | None:
    """The pixels by simplejpeg; None where Pillow must decode.

    That is: modes other than RGB and gray, a color image wanted in gray, which Pillow computes from the colors, and any
    file that makes the decoder fail or warn: Pillow decides which files are broken.
    """
    library = simplejpeg()
    if library is None or image.format not in ("JPEG", "MPO") or (image.mode, channels) not in SAME_BY_SIMPLEJPEG:
        return None
    try:
        pixels: Pixels = library.decode_jpeg(content, "RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None
    return pixels
