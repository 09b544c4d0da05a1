"""`read`, which decodes by simplejpeg where it may, against `decode`, which is Pillow's."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.shared_data import all_photos, cifar10, odd_images
from trt_cls.data.folder import list_images
from trt_cls.errors import DataError
from trt_cls.preprocessing import images
from trt_cls.preprocessing.images import decode, read
from trt_cls.preprocessing.pillow import hwc

simplejpeg = pytest.importorskip("simplejpeg")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name for each image that simplejpeg decoded, "complained" where it did not."""
    log: list[str] = []

    def watched(content: bytes, colorspace: str) -> Any:
        try:
            pixels = simplejpeg.decode_jpeg(content, colorspace)
        except ValueError:
            log.append("complained")
            raise
        log.append(colorspace)
        return pixels

    monkeypatch.setattr(images, "simplejpeg", lambda: SimpleNamespace(decode_jpeg=watched))
    return log


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colors with noise over them: all coefficients of a JPEG are in use."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(coarse).astype(int) + random.integers(-30, 31, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def outcome(function: Any, source: Path | bytes, channels: int) -> Any:
    """The pixels, or the message."""
    try:
        return hwc(function(source, channels))
    except DataError as error:
        return str(error)


def check(source: Path | bytes, channels: int = 3) -> None:
    np.testing.assert_array_equal(outcome(read, source, channels), outcome(decode, source, channels), str(source)[:99])


SIZES = [(1, 1), (7, 5), (8, 8), (16, 17), (33, 1), (1, 40), (61, 47), (130, 99)]


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("quality", [10, 75, 95, 100])
def test_every_subsampling_is_pillows(decoded: list[str], subsampling: str, quality: int) -> None:
    for width, height in SIZES:
        pixels = np.array(photograph(width, height))
        check(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=subsampling))
    assert decoded == ["RGB"] * len(SIZES)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 2},
        {"quality": 30, "progressive": True},
        {"dpi": (300, 300), "comment": "hello"},
    ],
)
def test_every_way_to_write_is_pillows(decoded: list[str], subsampling: str, options: dict[str, Any]) -> None:
    for size in SIZES:
        check(encoded(photograph(*size), **options, subsampling=subsampling))
    assert decoded == ["RGB"] * len(SIZES)


def test_files_that_hold_red_green_and_blue_are_pillows(decoded: list[str]) -> None:
    for size in SIZES:
        check(encoded(photograph(*size), keep_rgb=True))
    assert decoded == ["RGB"] * len(SIZES)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_files_are_pillows(decoded: list[str], channels: int, progressive: bool) -> None:
    for size in SIZES:
        check(encoded(photograph(*size).convert("L"), progressive=progressive), channels)
    assert decoded == [{1: "GRAY", 3: "RGB"}[channels]] * len(SIZES)


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        pytest.param(encoded(photograph(40, 30)), 1, id="colors wanted in gray"),
        pytest.param(encoded(photograph(40, 30).convert("CMYK")), 3, id="CMYK"),
        pytest.param(encoded(photograph(40, 30), "PNG"), 3, id="PNG"),
        pytest.param(encoded(photograph(40, 30), "WEBP", lossless=True), 3, id="WEBP"),
        pytest.param(encoded(photograph(40, 30), "TIFF", compression="jpeg"), 3, id="JPEG in a TIFF"),
    ],
)
def test_other_files_are_pillows_own(decoded: list[str], content: bytes, channels: int) -> None:
    check(content, channels)
    assert decoded == []


def test_several_images_in_a_file_give_the_first(decoded: list[str]) -> None:
    content = encoded(photograph(40, 30), "MPO", save_all=True, append_images=[photograph(50, 20, 1)])
    check(content)
    assert decoded == ["RGB"]


def test_exif_orientation_is_ignored(decoded: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photograph(40, 30), exif=exif)
    check(content)
    assert (read(content, 3).shape, decoded) == ((30, 40, 3), ["RGB", "RGB"])


def test_photographs_and_odd_images_are_pillows() -> None:
    for path in [*all_photos(), *odd_images(), *list_images(cifar10() / "test")[:50]]:
        for channels in (1, 3):
            check(path, channels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_damaged_files_come_out_as_by_pillow(decoded: list[str], options: dict[str, Any]) -> None:
    whole = encoded(photograph(45, 37), **options)
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)] if random.random() < 0.3 else whole)
        for place in random.integers(0, len(damaged), random.integers(0, 4)):
            damaged[place] = random.integers(0, 256)
        check(bytes(damaged))
    assert {"RGB", "complained"} == set(decoded)


def test_a_truncated_file_is_refused_by_pillow(tmp_path: Path, decoded: list[str]) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(photograph(60, 60))[:-200])
    with pytest.raises(DataError, match=r"picture\.jpg: broken image \(image file is truncated"):
        read(path, 3)
    assert decoded == ["complained"]


def test_a_decompression_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    content = encoded(photograph(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb"):
        read(content, 3)
    assert decoded == []


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("absent.jpg", "no such file")])
def test_what_is_no_file_is_a_data_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path / name, 3)


def test_without_simplejpeg_pillow_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(photograph(60, 45))
    pixels = read(content, 3)
    assert images.simplejpeg() is not None
    monkeypatch.setattr(images, "simplejpeg", lambda: None)
    np.testing.assert_array_equal(read(content, 3), pixels)
