from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pixel_reference import integer_resize, preprocess, preprocessing_of
from support.shared_data import all_photos, odd_folders, odd_images, preprocessed
from trt_cls.errors import DataError
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import fit, normalize

FOLDERS = odd_folders()
IMAGES = [(folder, name) for folder in FOLDERS for name in preprocessed(folder)["inputs"]]


@cache
def image(folder: Path, name: str, color: str) -> Image.Image:
    return decode(folder / preprocessed(folder)["inputs"][name]["file"], 3 if color == "rgb" else 1)


def test_the_images_are_those_that_nvidias_code_was_given() -> None:
    for name, recorded in preprocessed(FOLDERS[0])["inputs"].items():
        assert hashlib.sha256(image(FOLDERS[0], name, "rgb").tobytes()).hexdigest() == recorded["sha256_pixels"], name


@pytest.mark.parametrize(("folder", "name"), IMAGES)
def test_tensors_are_nvidias_bit_for_bit(folder: Path, name: str) -> None:
    cases = {k: v for k, v in preprocessed(folder)["stats"].items() if k.split("|")[0] == name}
    assert len(cases) >= 70
    different = []
    for key, expected in cases.items():
        _, color, filter_name, crop, mode, size = key.split("|")
        tensor = preprocess(image(folder, name, color), preprocessing_of(color, filter_name, crop, size, mode))
        assert (tensor.dtype, list(tensor.shape)) == (np.float32, expected["shape"])
        if hashlib.sha256(tensor.tobytes()).hexdigest() != expected["sha256"]:
            different.append(key)
    assert different == []


@pytest.mark.parametrize("path", [path for folder in FOLDERS for path in sorted(folder.glob("[or][ue]*.npz"))])
def test_pixels_are_nvidias(path: Path) -> None:
    with np.load(path) as reference:
        for key in reference.files:
            name, color, filter_name, crop, *mode, size = key.split("|")
            preprocessing = preprocessing_of(color, filter_name, crop, size, *mode)
            execute = preprocess if mode else fit
            found = execute(image(path.parent, name, color), preprocessing)
            np.testing.assert_array_equal(np.squeeze(found), np.squeeze(reference[key]), err_msg=key)


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    target=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    filter_name=st.sampled_from(["bilinear", "bicubic"]),
    color=st.sampled_from(["rgb", "gray"]),
    seed=st.integers(0, 9),
)
def test_center_crop_is_a_slice_of_the_image_resized_in_integers(
    width: int, height: int, target: tuple[int, int], filter_name: str, color: str, seed: int
) -> None:
    shape = (height, width, 3) if color == "rgb" else (height, width)
    source = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    w, h = target
    if (width, height) == target:
        expected = np.asarray(source)
    else:
        ratio = max((w + 32) / width, (h + 32) / height)
        whole = integer_resize(np.asarray(source), int(width * ratio), int(height * ratio), filter_name)
        top, left = round(whole.shape[0] / 2) - round(h / 2), round(whole.shape[1] / 2) - round(w / 2)
        expected = whole[top : top + h, left : left + w]
    fitted = fit(source, preprocessing_of(color, filter_name, "center", f"{h}x{w}"))
    assert fitted.shape == (h, w, 3 if color == "rgb" else 1)
    np.testing.assert_array_equal(fitted.reshape(expected.shape), expected)


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", ["32x32", "160x112", "224x224"])
def test_stretched_photos_equal_the_integer_arithmetic(filter_name: str, size: str) -> None:
    height, width = (int(number) for number in size.split("x"))
    for path in [*odd_images(), *all_photos()[1::40]]:
        source = decode(path, 3)
        np.testing.assert_array_equal(
            fit(source, preprocessing_of("rgb", filter_name, "none", size)),
            integer_resize(np.asarray(source), width, height, filter_name),
            err_msg=str(path),
        )


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf", "caffe_custom"])
def test_normalize_fills_the_given_array(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    preprocessing = preprocessing_of("rgb", "bilinear", "none", "16x24", mode)
    batch = np.full((2, 3, 16, 24), np.nan, np.float32)
    returned = normalize(pixels, preprocessing, batch[1])
    np.testing.assert_array_equal(batch[1], normalize(pixels, preprocessing))
    assert np.shares_memory(returned, batch)
    assert np.isnan(batch[0]).all()


def test_a_long_thin_image_is_refused_before_it_fills_the_memory() -> None:
    thin = Image.new("RGB", (1, 5000))
    with pytest.raises(DataError, match=r"1×5000 pixels are too long and thin"):
        fit(thin, preprocessing_of("rgb", "bilinear", "center", "224x224"))
    assert fit(thin, preprocessing_of("rgb", "bilinear", "none", "224x224")).shape == (224, 224, 3)
