"""From an image file to 8-bit RGB or grey pixels.

Knows Pillow's modes and the ways in which files are broken; nothing about sizes or networks.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from trt_cls.errors import DataError


def decode(source: Path | bytes, channels: int) -> Image.Image:
    """The pixels of `source`, an image file or its content, as `eight_bit` returns them.

    EXIF orientation is ignored, as in TAO.

    Raises:
        DataError: no image, a broken one or one that is refused; where `source` is a path, the message starts with it.
    """
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as image:
            image.load()
            return eight_bit(image, channels)
    except (
        Exception
    ) as error:  # Pillow's plugins let struct.error, SyntaxError, IndexError and more out of broken files
        reason = _reason(error)
        raise DataError(f"{source}: {reason}" if isinstance(source, Path) else reason) from error


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
