"""Which image files are opened at all."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from trt_cls.errors import DataError, TrtClsError
from trt_cls.preprocessing import image_file
from trt_cls.preprocessing.images import decode, read


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nothing(path: Path) -> None:
    path.symlink_to("/dev/null")


def process(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def kernel_log(path: Path) -> None:
    path.symlink_to("/proc/kmsg")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(30 << 30)


@pytest.mark.parametrize("make", [fifo, listening, zeros, nothing, process, kernel_log, sparse])
def test_what_is_no_regular_file_of_a_sane_size_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(Path("a.jpg"))
    with pytest.raises(DataError, match=r"^a\.jpg: "):
        read(Path("a.jpg"), 3)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", id="EPS"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "TGA"), id="TGA"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "PCX"), id="PCX"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "JPEG2000"), id="JPEG 2000"),
        pytest.param(encoded(Image.new("RGBA", (16, 16)), "ICO"), id="ICO"),
    ],
)
def test_other_formats_are_not_opened(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(DataError, match="not an image of a known format"):
        read(content, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF"])
def test_the_formats_that_are_taken_are_pillows(form: str) -> None:
    picture = Image.effect_noise((24, 16), 50).convert("RGB")
    content = encoded(picture, form)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(content, 3), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_ignored_in_every_format(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(encoded(Image.new("RGB", (8, 4)), form, exif=exif), 3).shape == (4, 8, 3)


def test_want_of_memory_is_no_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("L", (2500, 2500)), "PNG"))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_file.np, "empty", full)
    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(TrtClsError, match=r"a\.png: not enough memory to decode the image \(2500×2500") as caught:
        decode(path, 3)
    assert caught.value.exit_code == 1

    def called_broken(*_: object, **__: object) -> None:
        raise OSError("broken data stream when reading image file")

    monkeypatch.setattr(Image.Image, "convert", called_broken)
    with pytest.raises(TrtClsError, match="not enough memory") as caught:
        decode(path, 3)
    assert caught.value.exit_code == 1


def test_huge_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "ALONE_PIXELS", 100)
    content = encoded(Image.new("RGB", (20, 20)), "PNG")
    with image_file.opened_image(content):
        second = threading.Thread(target=read, args=(content, 3), daemon=True)
        second.start()
        second.join(0.2)
        assert second.is_alive()
    second.join(10)
    assert not second.is_alive()


def test_a_huge_picture_keeps_others_out_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "ALONE_PIXELS", 100)
    content = encoded(Image.new("RGB", (20, 20)), "PNG")
    second = threading.Thread(target=read, args=(content, 3), daemon=True)
    with image_file.holding():
        read(content, 3)
        second.start()
        second.join(0.2)
        assert second.is_alive()
    second.join(10)
    assert not second.is_alive()


def test_a_huge_picture_has_the_pixels_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.effect_noise((50, 61), 50).convert("RGB"), "PNG")
    expected = read(content, 3)
    monkeypatch.setattr("trt_cls.preprocessing.images.ALONE_PIXELS", 1000)
    np.testing.assert_array_equal(read(content, 3), expected)
