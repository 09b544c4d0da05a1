"""The CUDA kernel, built for the CPU, against Pillow and numpy: equal to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from support import cuda_on_cpu
from support.image_strategies import CROPS, EXTREME, FILTERS, Case, cases, noise, plain
from support.pixel_reference import COLOR, GRAY, preprocessing_of
from support.shared_data import all_photos, odd_images
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.packing import pack
from trt_cls.preprocessing.pillow import fit, hwc, normalize


def different_pixels(images: list[Image.Image], preprocessing: Preprocessing) -> int:
    """How many values the kernel and Pillow disagree on, over the batch."""
    tensors = cuda_on_cpu.preprocess([hwc(image) for image in images], preprocessing)
    expected = np.stack([fit(image, preprocessing) for image in images]).transpose(0, 3, 1, 2)
    return np.count_nonzero(tensors != expected)


def log_uniform(random: np.random.Generator, largest: int) -> int:
    return int(np.exp(random.uniform(0, np.log(largest + 1))))


def random_batch(random: np.random.Generator, largest: int, target: int) -> tuple[list[Image.Image], Preprocessing]:
    """Eight images of different sizes, one of them of the network's own."""
    channels = int(random.choice([1, 3]))
    preprocessing = plain(
        channels,
        log_uniform(random, target),
        log_uniform(random, target),
        str(random.choice(CROPS)),
        str(random.choice(FILTERS)),
    )
    sizes = [(log_uniform(random, largest), log_uniform(random, largest)) for _ in range(7)]
    sizes.append((preprocessing.width, preprocessing.height))
    return [noise(random, *size, channels) for size in sizes], preprocessing


def check_random_batches(seed: int, batches: int, largest: int, target: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(batches):
        images, preprocessing = random_batch(random, largest, target)
        sizes = [image.size for image in images]
        assert different_pixels(images, preprocessing) == 0, (preprocessing, sizes)


@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_pillows_for_random_sizes(seed: int) -> None:
    check_random_batches(seed, batches=50, largest=600, target=96)  # 4 · 50 · 8 = 1,600 images


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 106))
def test_pixels_are_pillows_for_random_sizes_up_to_large_ones(seed: int) -> None:
    check_random_batches(seed, batches=120, largest=400, target=260)  # 5,760 images
    check_random_batches(seed, batches=2, largest=4000, target=300)


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(cases())
def test_any_size_up_to_a_large_one_becomes_any_other_as_by_pillow(case: Case) -> None:
    image = case.image()
    try:
        fit(image, case.preprocessing)
    except DataError:
        with pytest.raises(DataError, match="too long and thin"):
            pack([hwc(image)], case.preprocessing)
        return
    assert different_pixels([image], case.preprocessing) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "tests", "passed"),
    [
        ("test_preprocess_kernel.py", "random_sizes and not large", 4),
        ("test_augment_kernel.py", "not length and not photographs", 50),
    ],
)
def test_nothing_outside_the_arrays_is_touched(file: str, tests: str, passed: int) -> None:
    """The random sizes once more, in a process with AddressSanitizer."""
    cuda_on_cpu.build()
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(asan.stdout.strip()).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    environment = {
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "TRT_CLS_KERNEL_FLAGS": "-fsanitize=address -fno-omit-frame-pointer -g",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name(file)),
        "-k",
        tests,
    ]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"\n{passed} passed" in done.stdout


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(("size", "target", "crop", "filter_name"), EXTREME)
def test_pixels_are_pillows_at_extreme_ratios(
    channels: int, size: tuple[int, int], target: tuple[int, int], crop: str, filter_name: str
) -> None:
    image = noise(np.random.default_rng(1), *size, channels)
    assert different_pixels([image], plain(channels, target[1], target[0], crop, filter_name)) == 0


@pytest.mark.parametrize(
    ("channels", "height", "width", "crop", "filter_name"),
    [(3, 224, 224, "center", "bilinear"), (3, 160, 112, "none", "bicubic"), (1, 96, 112, "center", "bicubic")],
)
@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.slow)], ids=["tenth", "all"])
def test_pixels_are_pillows_on_photographs(
    channels: int, height: int, width: int, crop: str, filter_name: str, part: int
) -> None:
    paths = all_photos()[::part]
    preprocessing = plain(channels, height, width, crop, filter_name)
    for start in range(0, len(paths), 16):
        batch = paths[start : start + 16]
        assert different_pixels([decode(path, channels) for path in batch], preprocessing) == 0, batch


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows_on_odd_images(channels: int, crop: str, filter_name: str) -> None:
    images = [decode(path, channels) for path in odd_images()]
    for height, width in ((32, 32), (224, 224), (75, 130)):
        assert different_pixels(images, plain(channels, height, width, crop, filter_name)) == 0


SHADES = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
"""An image that has every value."""
IMAGENET = Preprocessing(
    3, 16, 16, "none", "bilinear", "rgb", 255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
MODES = [
    *(preprocessing_of("rgb", "bilinear", "none", "16x16", mode) for mode in COLOR),
    *(preprocessing_of("gray", "bilinear", "none", "16x16", mode) for mode in GRAY),
    IMAGENET,
    replace(IMAGENET, channel_order="bgr"),
    replace(IMAGENET, std=(1e6, 3e4, 1e-3)),
    replace(IMAGENET, mean=(0.0,) * 3, divisor=255 * 2.0**20, std=(1.0,) * 3),
]


@pytest.mark.parametrize("preprocessing", MODES)
def test_normalized_values_are_numpys_bit_for_bit(preprocessing: Preprocessing) -> None:
    channels = preprocessing.channels
    image = np.concatenate([SHADES, SHADES[::-1], SHADES.transpose(1, 0, 2)], 2)[:, :, :channels]
    expected = normalize(image, preprocessing)
    single = cuda_on_cpu.preprocess([image], preprocessing)[0]
    np.testing.assert_array_equal(single.view(np.uint32), expected.view(np.uint32))


def test_equal_sizes_share_their_tables() -> None:
    preprocessing = plain(3, 32, 32, "center", "bicubic")
    one, two = (pack([np.zeros((50, 40, 3), np.uint8)] * count, preprocessing) for count in (1, 2))
    assert (len(two.sources), two.tables.size) == (2, one.tables.size)


def test_tables_cover_the_crop_only() -> None:
    """A strip as long as 16 crops takes no more weights than a square."""
    preprocessing = plain(1, 32, 32, "center", "bilinear")
    strip, square = (pack([np.zeros((32, w, 1), np.uint8)], preprocessing).tables.size for w in (32 * 16, 33))
    assert strip <= square


def test_a_long_thin_image_is_refused_as_by_pillow() -> None:
    with pytest.raises(DataError, match=r"1×5000 pixels are too long and thin"):
        pack([np.zeros((5000, 1, 3), np.uint8)], plain(3, 224, 224, "center", "bilinear"))
