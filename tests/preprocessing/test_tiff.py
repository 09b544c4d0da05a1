"""TIFF files written tag by tag, against the pixels that went into them."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from trt_cls.errors import DataError
from trt_cls.preprocessing.images import read

SHADES = np.arange(96, dtype=np.uint8).reshape(8, 12) * 2 + 3
"""8 rows of 12 pixels."""
COLORS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
TAGS = {
    "fill_order": 266, "orientation": 274, "samples": 277, "planar": 284, "color_map": 320, "ink_set": 332,
    "sample_format": 339, "subsampling": 530,
}  # fmt: skip


def tiff(content: bytes, bits: int, photometric: int, *, order: str = "<", **more: int | list[int]) -> bytes:
    """An uncompressed file of 12 pixels by 8, in one strip or one for each plane."""
    samples = int(more.get("samples", 1))  # type: ignore[arg-type]
    strips = samples if more.get("planar") == 2 else 1
    tags: dict[int, list[int]] = {256: [12], 257: [8], 258: [bits] * samples, 259: [1], 262: [photometric], 278: [8]}
    tags |= {TAGS[name]: value if isinstance(value, list) else [value] for name, value in more.items()}
    tags |= {273: [0] * strips, 279: [len(content) // strips] * strips}
    after = 8 + 2 + 12 * len(tags) + 4
    start = after + sum(2 * len(values) for values in tags.values() if len(values) > 2)
    tags[273] = [start + strip * len(content) // strips for strip in range(strips)]
    entries = extra = b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}H", *values)
        entries += struct.pack(f"{order}HHI", tag, 3, len(values))
        entries += struct.pack(f"{order}I", after + len(extra)) if len(data) > 4 else data.ljust(4, b"\0")
        extra += data if len(data) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + extra + content


def packed12(values: npt.NDArray[np.uint16]) -> bytes:
    """Two pixels in three bytes, the high bits first."""
    first, second = values.reshape(-1, 2).astype(int).T
    return bytes(np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8))


WIDE = SHADES.astype(np.uint16) << 8 | 0x5A
ROWS = [struct.pack("<HHIH", 257, 3, 1, rows) for rows in (8, 9)]
MAP = np.random.default_rng(1).integers(0, 256, (3, 256))


@pytest.mark.parametrize(
    ("content", "right"),
    [
        pytest.param(tiff(SHADES.tobytes(), 8, 1), SHADES, id="8 bits"),
        pytest.param(tiff(SHADES.tobytes(), 8, 0), 255 - SHADES, id="8 bits, min is white"),
        pytest.param(tiff(WIDE.astype("<u2").tobytes(), 16, 1), SHADES, id="16 bits"),
        pytest.param(tiff(WIDE.astype(">u2").tobytes(), 16, 1, order=">"), SHADES, id="16 bits, big-endian"),
        pytest.param(tiff(WIDE.astype("<u2").tobytes(), 16, 0), 255 - SHADES, id="16 bits, min is white"),
        pytest.param(tiff(packed12(WIDE >> 4), 12, 1), SHADES, id="12 bits"),
        pytest.param(tiff(SHADES.tobytes(), 8, 3, color_map=[*(257 * MAP.ravel())]), MAP.T[SHADES], id="16-bit map"),
        pytest.param(tiff(SHADES.tobytes(), 8, 3, color_map=[*MAP.ravel()]), MAP.T[SHADES], id="8-bit map"),
        pytest.param(tiff(COLORS.tobytes(), 8, 2, samples=3), COLORS, id="RGB"),
        pytest.param(tiff(COLORS.transpose(2, 0, 1).tobytes(), 8, 2, samples=3, planar=2), COLORS, id="planes"),
        pytest.param(tiff((COLORS.astype("<u2") * 257).tobytes(), 16, 2, samples=3), COLORS, id="16-bit RGB"),
    ],
)  # fmt: skip
def test_pixels_are_those_of_the_tags(content: bytes, right: npt.NDArray[Any]) -> None:
    expected = right if right.ndim == 3 else np.repeat(right[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read(content, 3), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(tiff(bytes(576), 16, 2, samples=3, planar=2), "separate planes of 16 bits", id="16-bit planes"),
        pytest.param(tiff(SHADES.tobytes(), 8, 0, planar=2), "separate planes", id="min is white in planes"),
        pytest.param(tiff(bytes(288), 8, 2, samples=3, planar=2, fill_order=2), "planes", id="reversed planes"),
        pytest.param(tiff(bytes(192), 16, 1, fill_order=2), "reversed", id="16 bits reversed"),
        pytest.param(tiff(SHADES.tobytes(), 8, 1, sample_format=2), "signed", id="signed bytes"),
        pytest.param(tiff(bytes(192), 16, 1, sample_format=2), "signed", id="signed 16 bits"),
        pytest.param(tiff(SHADES.astype("<u4").tobytes(), 32, 1), "32-bit integers up to 193", id="32 bits"),
        pytest.param(tiff(SHADES.tobytes(), 8, 3, color_map=[0] * 99), "color map of 99 values", id="short map"),
        pytest.param(tiff(bytes(384), 8, 5, samples=4, ink_set=2), "other inks", id="other inks"),
        pytest.param(tiff(bytes(288), 8, 6, samples=3, subsampling=[2, 2]), "fewer colors", id="subsampled YCbCr"),
        pytest.param(tiff(bytes(288), 8, 8, samples=3), "CIELAB", id="CIELAB"),
        pytest.param(tiff(SHADES.tobytes(), 8, 1).replace(*ROWS), "96 of its 108 pixels", id="a strip is missing"),
    ],
)  # fmt: skip
def test_pixels_that_would_come_out_wrong_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(content, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_as_in_every_format(orientation: int) -> None:
    content = tiff(COLORS.tobytes(), 8, 2, samples=3, orientation=orientation)
    np.testing.assert_array_equal(read(content, 3), COLORS)


def test_orientation_of_a_palette_is_ignored_too() -> None:
    content = tiff(SHADES.tobytes(), 8, 3, color_map=[*MAP.ravel()], orientation=6)
    np.testing.assert_array_equal(read(content, 3), MAP.T[SHADES])


def test_values_of_32_bits_that_fill_16_are_taken() -> None:
    values = WIDE.astype("<u4") + 0x3000
    np.testing.assert_array_equal(read(tiff(values.tobytes(), 32, 1), 1)[:, :, 0], values >> 8)


def test_libtiff_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    Image.fromarray(COLORS).save(stream, "TIFF", compression="tiff_lzw")
    content = stream.getvalue()
    for place in range(8, len(content), 9):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        with contextlib.suppress(DataError):
            read(bytes(damaged), 3)
    assert capfd.readouterr() == ("", "")
