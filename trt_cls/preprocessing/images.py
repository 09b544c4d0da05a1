"""From an image file to 8-bit RGB or grey pixels.

Knows Pillow's modes and the ways in which files are broken; nothing about sizes or networks. Pillow decides what an
image is. simplejpeg, which is optional, decodes plain JPEG files faster, with the same library and to the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from trt_cls.errors import DataError
from trt_cls.preprocessing.native import SWITCH
from trt_cls.preprocessing.pillow import Pixels, hwc

PLAIN = {("RGB", 3), ("L", 3), ("L", 1)}
"""Modes of JPEG files, and the channels wanted of them, for which a plain decoder does what Pillow does."""


def decode(source: Path | bytes, channels: int) -> Image.Image:
    """The pixels of `source`, an image file or its content, as `eight_bit` returns them.

    EXIF orientation is ignored, as in TAO.

    Raises:
        DataError: no image, a broken one or one that is refused; where `source` is a path, the message starts with it.
    """
    with _told(source), Image.open(BytesIO(_content(source))) as image:
        image.load()
        return eight_bit(image, channels)


def read(source: Path | bytes, channels: int) -> Pixels:
    """The pixels that `decode` returns as an array [H,W,C].

    Raises:
        DataError: as `decode`.
    """
    with _told(source):
        content = _content(source)
        with Image.open(BytesIO(content)) as image:
            pixels = _pixels_of_jpeg(image, content, channels)
            if pixels is not None:
                return pixels
            image.load()
            return hwc(eight_bit(image, channels))


def decoder() -> Literal["simplejpeg", "pillow"]:
    """What decodes plain JPEG files here."""
    return "pillow" if _simplejpeg() is None else "simplejpeg"


def _content(source: Path | bytes) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


@contextmanager
def _told(source: Path | bytes) -> Iterator[None]:
    """Any error as a DataError with its reason."""
    try:
        yield
    except Exception as error:
        # Pillow's plugins let struct.error, SyntaxError, IndexError and more out of broken files
        reason = _reason(error)
        raise DataError(f"{source}: {reason}" if isinstance(source, Path) else reason) from error


def _pixels_of_jpeg(image: Image.Image, content: bytes, channels: int) -> Pixels | None:
    """The pixels by simplejpeg; None where Pillow must decode.

    That is: other modes than RGB and grey, a colour image wanted in grey, which Pillow computes from the colours, and
    whatever makes the decoder complain, even where it could go on: Pillow judges broken files.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or (image.mode, channels) not in PLAIN:
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None
    return pixels


@cache
def _simplejpeg() -> ModuleType | None:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """`image`, of any mode, as mode RGB (3 channels) or L (1 channel).

    Transparency is dropped without compositing, as in TAO. Of 16-bit grey pixels the high byte counts (`value >> 8`),
    as Pillow does for 16-bit colour; its conversion of grey would clip most to white.

    Raises:
        DataError: the pixels are floating-point, or wider than 16 bits: their range is not known.
    """
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save the image with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError("pixels wider than 16 bits have no known range; save the image with 8 or 16 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if (
        "transparency" in image.info
    ):  # Pillow would convert the transparent colour too, and warn where there are several
        image = image.copy()
        del image.info["transparency"]
    return image.convert("L" if channels == 1 else "RGB")


def _reason(error: Exception) -> str:
    """Why a file can't be decoded, in a few words."""
    match error:
        case DataError():
            return str(error)
        case UnidentifiedImageError():
            return "not an image of a known format"
        case Image.DecompressionBombError():
            return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which is taken for a decompression bomb"
        case FileNotFoundError():
            return "no such file"
        case OSError(strerror=str(strerror)):
            return strerror
        case _:
            return f"broken image ({' '.join(str(error).split()) or type(error).__name__})"
