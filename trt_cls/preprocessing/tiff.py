"""TIFF files: which ones Pillow decodes correctly, which ones are corrected here, and which ones are refused.

Pillow reads the layouts of its table `OPEN_INFO`; those that it reads wrongly were found by writing all combinations of
bits, samples, planes, compressions and byte orders with tifffile and comparing the pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import TiffImageFile

from trt_cls.errors import DataError

UNCOMPRESSED, SEPARATE = 1, 2
MIN_IS_WHITE, PALETTE, CMYK, YCBCR = 0, 3, 5, 6
KINDS = {
    8: "CIELAB", 9: "ICC Lab", 10: "ITU Lab", 32803: "raw camera data", 32844: "LogL", 32845: "LogLuv", 34892: "raw",
}  # fmt: skip
"""Values of PhotometricInterpretation that are refused."""
SIGNED = 2
FULL_RANGE = ((0, 255, 128, 255, 128, 255), (0, 255, 0, 255, 0, 255))
"""ReferenceBlackWhite of YCbCr as in JPEG, and another spelling of it that several writers use."""
JPEG_COEFFICIENTS = (0.299, 0.587, 0.114)

T = Image.Transpose
_UNDO = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE,
    8: T.ROTATE_270,
}  # fmt: skip
"""Undoes Pillow's rotation by the orientation."""


def loaded_tiff(image: TiffImageFile) -> Image.Image:
    """The image decoded, as it is stored: of all formats Pillow rotates only TIFF by its orientation as it loads it.

    Raises:
        DataError: its pixels would come out wrong.
    """
    _refuse(image)
    bits, photometric = _bits(image), image.tag_v2.get(Tag.PhotometricInterpretation, 0)
    orientation = image.getexif().get(Tag.Orientation, 1)
    colors = image.tag_v2.get(Tag.ColorMap) if photometric == PALETTE else None
    image.load()
    found: Image.Image = image
    if bits == (12,):
        found = Image.fromarray(np.asarray(image) << 4)
    elif bits == (16,) and photometric == MIN_IS_WHITE:
        found = Image.fromarray(~np.asarray(image))
    elif bits == (32,) and image.mode == "I":
        _refuse_small_values(image)
    if colors is not None and max(colors) < 256:  # a map of 8 bits instead of 16, as libtiff reads it too
        found.putpalette(np.array(colors, np.uint8).reshape(3, -1).T.tobytes())
    undo = _UNDO.get(orientation)
    return found if undo is None else found.transpose(undo)


def _refuse(image: TiffImageFile) -> None:
    """Refuses what Pillow would decode to other pixels than the tags state."""
    tags, bits = image.tag_v2, _bits(image)
    photometric = tags.get(Tag.PhotometricInterpretation, 0)
    raw = tags.get(Tag.Compression, UNCOMPRESSED) == UNCOMPRESSED
    if photometric in KINDS:
        raise _refused(f"pixels in {KINDS[photometric]}")
    if SIGNED in tags.get(Tag.SampleFormat, ()) and max(bits) < 32:
        raise _refused("signed integers, whose range is not known")
    reversed_bits = tags.get(Tag.FillOrder, 1) != 1
    if raw and tags.get(Tag.PlanarConfiguration, 1) == SEPARATE:
        # there Pillow checks only the number of samples
        if set(bits) != {8} or reversed_bits or photometric in (MIN_IS_WHITE, YCBCR):
            raise _refused(f"uncompressed separate planes of {max(bits)} bits of this kind")
    elif reversed_bits and max(bits) > 8:
        raise _refused(f"{max(bits)} bits in reversed order")
    if photometric == PALETTE and len(tags.get(Tag.ColorMap, ())) != 3 << bits[0]:
        raise _refused(f"a color map of {len(tags.get(Tag.ColorMap, ()))} values for {bits[0]} bits")
    if photometric == CMYK and tags.get(Tag.InkSet, 1) != 1:
        raise _refused("other inks than CMYK")
    if photometric == YCBCR and raw:
        _refuse_odd_ycbcr(image)
    planes = len(bits) if raw and tags.get(Tag.PlanarConfiguration, 1) == SEPARATE else 1
    boxes = [extents or (0, 0, *image.size) for _, extents, *_ in image.tile]
    stored = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if stored < planes * image.width * image.height:  # Pillow leaves the others black
        raise _refused(f"strips or tiles for {stored // planes:,} of its {image.width * image.height:,} pixels")


def _refuse_odd_ycbcr(image: TiffImageFile) -> None:
    """Refuses other uncompressed YCbCr than Pillow assumes: full resolution, with JPEG's range and coefficients."""
    tags = image.tag_v2
    if len(_bits(image)) == 3 and tags.get(Tag.YCbCrSubSampling, (2, 2)) != (1, 1):
        raise _refused("uncompressed YCbCr with fewer colors than pixels")
    limits = tuple(float(value) for value in tags.get(Tag.ReferenceBlackWhite, FULL_RANGE[0]))
    coefficients = tags.get(Tag.YCbCrCoefficients, JPEG_COEFFICIENTS)
    if limits not in FULL_RANGE or not np.allclose(np.asarray(coefficients, float), JPEG_COEFFICIENTS, atol=1e-3):
        raise _refused("YCbCr of another range or other coefficients than JPEG's")


def _refuse_small_values(image: Image.Image) -> None:
    """Refuses 32-bit values that may use fewer than 16 bits: the tag does not state how many are used."""
    values = np.asarray(image)
    smallest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    if smallest >= 0 and largest < 0x8000:
        raise _refused(f"32-bit integers up to {largest}, whose range is not known")


def _bits(image: TiffImageFile) -> tuple[int, ...]:
    return tuple(image.tag_v2.get(Tag.BitsPerSample, (1,)))[: image.tag_v2.get(Tag.SamplesPerPixel, 1)]


def _refused(what: str) -> DataError:
    return DataError(f"TIFF with {what} found, expected 8 or 16 bits of gray, RGB, CMYK or a palette; save it so")
