from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.pixel_reference import preprocessing_of
from support.shared_data import odd_folders, preprocessed
from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import Mixing, augment, change_colors, mixup_shares, smoothed_targets
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import fit
from trt_cls.spec.experiment import LrConfig, Optimizer, RegConfig, TrainConfig

FOLDERS = odd_folders()
SQUARE = preprocessing_of("rgb", "bilinear", "center", "32x32")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def train_config(**fields: Any) -> TrainConfig:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    return TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)


def random_crop(image: Image.Image, preprocessing: Preprocessing, rng: Random) -> np.ndarray:
    cropped = train_config(enable_color_augmentation=False, disable_horizontal_flip=True)
    return augment(image, preprocessing, cropped, rng)


class Draws(Random):
    """Gives the shares that a test asks for, and the highest of all other draws."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return self.share if (a, b) == (0.45, 1) else b

    def randint(self, a: int, b: int) -> int:
        assert a <= b
        return b


@pytest.mark.parametrize("folder", FOLDERS)
def test_random_crops_are_nvidias(folder: Path) -> None:
    cases = preprocessed(folder)["random_crop"]
    assert len(cases) == 27
    inputs = preprocessed(folder)["inputs"]
    for key, case in cases.items():
        name, color, filter_name, _, size, _ = key.split("|")
        source = decode(folder / inputs[name]["file"], 3)
        preprocessing = preprocessing_of(color, filter_name, "none", size)
        pixels = random_crop(source, preprocessing, Random(case["python_random_seed"]))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["sha256_uint8_hwc"], key


@pytest.mark.parametrize("folder", FOLDERS)
def test_random_crop_pixels_are_nvidias(folder: Path) -> None:
    inputs = preprocessed(folder)["inputs"]
    with np.load(folder / "random_crop_uint8.npz") as reference:
        for key in reference.files:
            name, color, filter_name, _, size, seed = key.split("|")
            source = decode(folder / inputs[name]["file"], 3)
            rng = Random(int(seed.removeprefix("seed")))
            pixels = random_crop(source, preprocessing_of(color, filter_name, "none", size), rng)
            np.testing.assert_array_equal(pixels, reference[key], err_msg=key)


@pytest.mark.parametrize("share", [0.45, 1.0])
def test_a_crop_is_full_even_where_rounding_falls_short(share: float) -> None:
    sizes = [(width, height) for width in range(1, 130, 3) for height in (29, 31, 47, 125)]
    short = [
        size for size in sizes
        if min(int(side * max(32 / share / size[0], 32 / share / size[1])) for side in size) < 32
    ]  # fmt: skip
    assert bool(short) == (share == 1), "the sizes must include some that fall short"
    for size in sizes:
        assert random_crop(noise(*size), SQUARE, Draws(share)).shape == (32, 32, 3)


def test_an_image_of_the_right_size_is_not_cropped_but_its_colors_change() -> None:
    source = noise(32, 32)
    np.testing.assert_array_equal(random_crop(source, SQUARE, Random(0)), np.asarray(source))
    plain = train_config(enable_color_augmentation=False, disable_horizontal_flip=True)
    np.testing.assert_array_equal(augment(source, SQUARE, plain, Random(0)), np.asarray(source))
    changed = augment(source, SQUARE, train_config(disable_horizontal_flip=True), Random(0))
    assert (changed != np.asarray(source)).mean() > 0.5


COLOR_CASES = [("case0", 0.0, 0.0, 0.0), ("case1", 25.0, 0.2, 0.1), ("case2", -25.0, -0.2, -0.1)]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(("case", "hue", "saturation", "contrast"), COLOR_CASES)
def test_colors_are_nvidias(case: str, hue: float, saturation: float, contrast: float, folder: Path) -> None:
    source = np.asarray(decode(folder / "s37x53.png", 3))
    with np.load(folder / "color_aug_s37x53_uint8.npz") as reference:
        expected = reference[case]
    changed = change_colors(source, hue, saturation, contrast)
    np.testing.assert_array_equal(changed[:, :32], expected[:, :32])
    # OpenCV takes eight pixels at once and rounds the last five of 37 in another way.
    difference = np.abs(changed[:, 32:].astype(int) - expected[:, 32:])
    assert difference.max() <= 1
    assert (difference != 0).sum() <= 5


def test_gray_pixels_and_grayscale_images_keep_their_color() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    changed = change_colors(ramp, 20.0, 0.0, 0.0)
    assert np.abs(changed.astype(int) - ramp).max() <= 1
    gray = preprocessing_of("grayscale", "bilinear", "center", "32x32")
    source = noise(32, 32).convert("L")
    np.testing.assert_array_equal(
        augment(source, gray, train_config(disable_horizontal_flip=True), Random(0))[:, :, 0], np.asarray(source)
    )


@pytest.mark.parametrize("preprocessing", [SQUARE, preprocessing_of("rgb", "bicubic", "none", "32x48")])
def test_without_random_crop_training_sees_the_validation_pixels(preprocessing: Preprocessing) -> None:
    train = train_config(enable_random_crop=False, disable_horizontal_flip=True)
    source = noise(80, 60)
    np.testing.assert_array_equal(augment(source, preprocessing, train, Random(0)), fit(source, preprocessing))


def test_half_of_the_images_are_mirrored() -> None:
    train = train_config(enable_random_crop=False)
    source, fitted = noise(80, 60), fit(noise(80, 60), SQUARE)
    mirrored = 0
    for seed in range(400):
        pixels = augment(source, SQUARE, train, Random(seed))
        mirrored += np.array_equal(pixels, fitted[:, ::-1])
        assert np.array_equal(pixels, fitted) or np.array_equal(pixels, fitted[:, ::-1])
    assert 150 < mirrored < 250, "400 fair draws leave this range once in two million runs"


def test_labels_are_smoothed_over_all_classes() -> None:
    np.testing.assert_allclose(smoothed_targets([2, 0], 4, 0.1), [[0.025, 0.025, 0.925, 0.025], [0.925, *[0.025] * 3]])
    np.testing.assert_array_equal(smoothed_targets([1], 3, 0.0), [[0, 1, 0]])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_mixup_mixes_with_the_reversed_batch(count: int) -> None:
    generator = np.random.default_rng(1)
    images = generator.normal(size=(count, 3, 4, 5)).astype(np.float32)
    targets = np.eye(count, dtype=np.float32)
    mixing = Mixing(torch.from_numpy(mixup_shares(count, 0.4, Random(7))))
    mixed_images, mixed_targets = (
        mix(torch.from_numpy(rows.copy())).numpy() for mix, rows in ((mixing.images, images), (mixing.targets, targets))
    )
    rng = Random(7)
    for row in range(count):
        draw = rng.betavariate(0.4, 0.4)
        share = max(draw, 1 - draw)
        for mixed, plain in ((mixed_images, images), (mixed_targets, targets)):
            expected = share * plain[row] + (1 - share) * plain[count - 1 - row]
            np.testing.assert_allclose(mixed[row], expected, rtol=0, atol=1e-6)
            share = np.float32(share)
            exact = plain[row] * share + plain[count - 1 - row] * (np.float32(1) - share)
            np.testing.assert_array_equal(mixed[row], exact, err_msg="each operation rounds for itself")
    np.testing.assert_allclose(mixed_targets.sum(axis=1), 1, rtol=1e-6)
