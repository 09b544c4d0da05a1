from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_cls.errors import DataError
from trt_cls.preprocessing.images import decode

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
"""16-bit values from 0 to 65535 whose high byte counts from 0 to 255."""
HIGH_BYTE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "image",
    [
        pytest.param((Image.fromarray(RAMP), "PNG"), id="16-bit PNG"),
        pytest.param((Image.fromarray(RAMP), "TIFF"), id="16-bit TIFF"),
        pytest.param((Image.fromarray(RAMP.astype(">u2")), "TIFF"), id="16-bit big-endian TIFF"),
        pytest.param((Image.fromarray(RAMP.astype(np.int32)), "TIFF"), id="32-bit TIFF of 16-bit values"),
    ],
)
def test_sixteen_bits_keep_their_high_byte(image: tuple[Image.Image, str], channels: int) -> None:
    pixels = np.asarray(decode(encoded(*image), channels))
    np.testing.assert_array_equal(pixels if channels == 1 else pixels[:, :, 1], HIGH_BYTE)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.ones((4, 4), np.float32), "floating-point"),
        (np.full((4, 4), 70_000, np.int32), "wider than 16 bits"),
        (np.full((4, 4), -1, np.int32), "wider than 16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(encoded(Image.fromarray(values), "TIFF"), 3)


RGBA = np.dstack(
    [np.full((4, 4), value, np.uint8) for value in (10, 200, 60)] + [np.arange(16, dtype=np.uint8).reshape(4, 4)]
)
PALETTE = Image.fromarray(RGBA[:, :, :3]).quantize(4)


@pytest.mark.parametrize(
    ("content", "red"),
    [
        pytest.param(encoded(Image.fromarray(RGBA), "PNG"), 10, id="RGBA"),
        pytest.param(encoded(Image.fromarray(RGBA[:, :, :2]), "PNG"), 10, id="LA"),
        pytest.param(encoded(PALETTE, "PNG", transparency=0), 10, id="P, a transparent index"),
        pytest.param(encoded(PALETTE, "PNG", transparency=bytes([0, 9, 99, 255])), 10, id="P, several"),
        pytest.param(
            encoded(Image.fromarray(RGBA[:, :, :3]), "PNG", transparency=(10, 200, 60)), 10, id="RGB, a colour"
        ),
        pytest.param(encoded(Image.fromarray(RGBA[:, :, 0]), "PNG", transparency=10), 10, id="L, a shade"),
        pytest.param(encoded(Image.new("1", (4, 4), 1), "PNG"), 255, id="1 bit"),
        pytest.param(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF"), 255, id="CMYK"),
        pytest.param(
            encoded(Image.new("YCbCr", (4, 4), (255, 128, 128)), "TIFF", compression="tiff_lzw"), 255, id="YCbCr"
        ),
    ],
)
def test_odd_modes_become_plain_colours_without_a_warning(content: bytes, red: int) -> None:
    color, gray = decode(content, 3), decode(content, 1)
    assert (color.mode, gray.mode) == ("RGB", "L")
    assert color.getpixel((1, 2))[0] == red
    assert gray.getextrema()[0] == gray.getextrema()[1]


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif), 3).size == (8, 4)


JPEG = encoded(Image.effect_noise((64, 64), 90), "JPEG")
PNG = encoded(Image.effect_noise((64, 64), 90), "PNG")
TIFF = encoded(Image.effect_noise((64, 64), 90), "TIFF")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "not an image", id="empty"),
        pytest.param(b"just some text\n", "not an image", id="text"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated", id="truncated JPEG"),
        pytest.param(PNG[: len(PNG) // 2], "truncated", id="truncated PNG"),
        pytest.param(PNG[:40] + b"\0" * 60 + PNG[100:], "broken", id="garbage in a PNG"),
        pytest.param(TIFF[:9], "not an image|broken", id="truncated TIFF"),
        pytest.param(b"P6\n100000 100000\n255\n", "decompression bomb", id="bomb"),
    ],
)
def test_a_broken_file_gives_one_line_that_starts_with_its_path(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        decode(path, 3)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 150


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_damage_anywhere_is_a_data_error_or_an_image(form: str) -> None:
    whole = encoded(Image.effect_noise((24, 24), 90).convert("RGB"), form)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, min(len(damaged), 200), 3):
            damaged[place] = random.integers(0, 256)
        with contextlib.suppress(DataError):
            assert decode(bytes(damaged), 3).mode == "RGB"


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("absent.jpg", "no such file")])
def test_what_is_no_file_is_a_data_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(tmp_path / name, 3)
