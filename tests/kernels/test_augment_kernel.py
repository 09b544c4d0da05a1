"""The CUDA kernel for training, built for the CPU, against the augmentation on the CPU: equal to the bit."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import cuda_on_cpu
from support.image_strategies import FILTERS, lengths, noise
from support.pixel_reference import COLOR, GRAY, preprocessing_of
from support.shared_data import all_photos
from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import CONTRAST, HUE, SATURATION, Box, Colors, ImagePlan, apply, plan
from trt_cls.data.transforms import MOST_SOURCE_PIXELS, bundle, kernel_image
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.packing import CHANGE
from trt_cls.preprocessing.pillow import Axis, Pixels, axes, hwc, normalize
from trt_cls.spec.experiment import LrConfig, Optimizer, RegConfig, TrainConfig

TRAIN = TrainConfig(
    train_dataset_path="",
    val_dataset_path="",
    optimizer=Optimizer(),
    reg_config=RegConfig(type="None"),
    lr_config=LrConfig(),
)


def different_bits(images: list[Pixels], plans: list[ImagePlan], preprocessing: Preprocessing) -> int:
    """How many values of the batch the kernel and the CPU disagree on."""
    found = cuda_on_cpu.augment(
        [kernel_image(*both, preprocessing) for both in zip(images, plans, strict=True)], preprocessing
    )
    tensors = []
    for image, made in zip(images, plans, strict=True):
        tensors.append(normalize(apply(made, image, preprocessing.filter), preprocessing))
        left, top, right, bottom = made.erased
        tensors[-1][:, top:bottom, left:right] = 0
    expected = np.stack(tensors)
    return np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32))


def drawn(image: Pixels, preprocessing: Preprocessing, rng: Random) -> ImagePlan:
    """A plan with a shift for every other image, and a rectangle to erase for every other one."""
    made = plan((image.shape[1], image.shape[0]), preprocessing, TRAIN, rng)
    left, right = sorted(rng.randint(0, preprocessing.width) for _ in range(2))
    top, bottom = sorted(rng.randint(0, preprocessing.height) for _ in range(2))
    made = made._replace(erased=Box(left, top, right, bottom)) if rng.random() < 0.5 else made
    most_down, most_across = preprocessing.height - 1, preprocessing.width - 1
    shift = rng.randint(-most_down, most_down), rng.randint(-most_across, most_across)
    return made._replace(shift=shift) if rng.random() < 0.5 else made


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Pixels], list[ImagePlan], Preprocessing]:
    color = draw(st.sampled_from(["rgb", "gray"]))
    mode = draw(st.sampled_from(sorted(COLOR)))
    height, width = draw(lengths(70)), draw(lengths(70))
    preprocessing = preprocessing_of(color, draw(st.sampled_from(FILTERS)), "none", f"{height}x{width}", mode)
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    sizes = [*draw(st.lists(st.tuples(lengths(400), lengths(400)), max_size=3)), (width, height)]
    images = [hwc(noise(random, *size, preprocessing.channels)) for size in sizes]
    rng = Random(draw(st.integers(0, 2**20)))
    return images, [drawn(image, preprocessing, rng) for image in images], preprocessing


@settings(deadline=None, max_examples=150, derandomize=True)
@given(batches())
def test_any_size_by_any_draws_is_that_of_the_cpu(batch: tuple[list[Pixels], list[ImagePlan], Preprocessing]) -> None:
    assert different_bits(*batch) == 0


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(batches())
def test_any_size_by_any_draws_is_that_of_the_cpu_at_length(
    batch: tuple[list[Pixels], list[ImagePlan], Preprocessing],
) -> None:
    assert different_bits(*batch) == 0


@pytest.mark.parametrize("mode", sorted(COLOR))
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_photographs_are_those_of_the_cpu(color: str, mode: str) -> None:
    assert mode in GRAY
    paths = all_photos()
    for number, filter_name in enumerate(FILTERS):
        preprocessing = preprocessing_of(color, filter_name, "center", "96x112", mode)
        images = [read(path, preprocessing.channels) for path in paths[number::8]]
        rng = Random(number)
        assert different_bits(images, [drawn(image, preprocessing, rng) for image in images], preprocessing) == 0


def whole(width: int, height: int) -> tuple[Axis, Axis]:
    return Axis(width, width, 0, width), Axis(height, height, 0, height)


def test_every_shade_of_every_color_changes_as_on_the_cpu() -> None:
    """Pixels as they are: each step of 5 of all three channels, by the largest changes, none, and some between."""
    steps = np.arange(0, 256, 5, dtype=np.uint8)  # 0 to 255
    colors = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(len(steps), -1, 3)
    preprocessing = preprocessing_of("rgb", "bilinear", "none", f"{colors.shape[0]}x{colors.shape[1]}", "torch")
    rng = Random(0)
    changes = [Colors(sign * HUE, sign * SATURATION, sign * CONTRAST) for sign in (-1, 0, 1)]
    changes += [Colors(*(rng.uniform(-most, most) for most in (HUE, SATURATION, CONTRAST))) for _ in range(13)]
    plans = [ImagePlan(whole(colors.shape[1], colors.shape[0]), change, (0, 0), False) for change in changes]
    assert different_bits([colors] * len(plans), plans, preprocessing) == 0


SIDES = [(1, 1), (1, 9), (9, 1), (2, 2), (2, 3), (3, 2), (4, 5), (34, 3), (3, 34)]
"""(height, width): outputs of one pixel, of two, which are both an edge, and of more than one tile."""


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_by_every_shift_each_output_is_written_with_the_pixel_of_the_cpu(
    height: int, width: int, mirrored: bool
) -> None:
    preprocessing = preprocessing_of("gray", "bilinear", "none", f"{height}x{width}", "torch")
    image = np.arange(height * width, dtype=np.uint8).reshape(height, width, 1)  # each pixel has a value of its own
    shifts = [(down, across) for down in range(1 - height, height) for across in range(1 - width, width)]
    plans = [ImagePlan(whole(width, height), None, shift, mirrored) for shift in shifts]
    assert different_bits([image] * len(plans), plans, preprocessing) == 0


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("shift", [(-5, 3), (5, -3), (0, 20), (20, 0), (-33, -47)])
def test_a_shift_comes_after_the_colors_and_before_the_mirror_and_the_erased_box(
    shift: tuple[int, int], order: Literal["rgb", "bgr"], mirrored: bool
) -> None:
    preprocessing = replace(preprocessing_of("rgb", "bicubic", "center", "34x48", "torch"), channel_order=order)
    image = hwc(noise(np.random.default_rng(0), 90, 50, 3))
    made = ImagePlan(axes((90, 50), preprocessing), Colors(20.0, 0.1, 0.1), shift, mirrored, Box(2, 4, 30, 20))
    assert different_bits([image], [made], preprocessing) == 0


def test_by_every_shift_each_output_of_a_line_shows_one_pixel() -> None:
    """Written twice, it would be a race: whose pixel is seen then depends on which block comes last."""
    shown_at = cuda_on_cpu.build().shown_at
    for side in range(1, 10):
        for start in range(1 - side, side):
            pairs = [(shown_at(at, start, side, reflected), at) for at in range(side) for reflected in (False, True)]
            inside = sorted((output, at) for output, at in pairs if 0 <= output < side)
            expected = np.pad(np.arange(side), side, "reflect")[side + start :][:side] if side > 1 else [0]
            assert inside == list(enumerate(expected))


@pytest.mark.parametrize("shift", [(3, 0), (-3, 0), (0, 5), (0, -5), (2**31 - 1, -(2**31)), (-(2**31), 2**31 - 1)])
def test_a_shift_by_a_side_or_more_is_refused_and_would_write_nothing_outside(shift: tuple[int, int]) -> None:
    preprocessing = preprocessing_of("gray", "bilinear", "none", "3x5", "torch")
    made = ImagePlan(whole(5, 3), None, (1, 1), False)
    part = kernel_image(np.zeros((3, 5, 1), np.uint8), made, preprocessing)
    with pytest.raises(ValueError, match=r"expected shifts by less than \(3, 5\)"):
        bundle([part._replace(plan=made._replace(shift=shift))], preprocessing)
    allowed = bundle([part], preprocessing)
    content = np.empty(allowed.size, np.uint8)
    allowed.write(content)
    content[allowed.starts[2] :][: CHANGE.itemsize].view(CHANGE)["shift"] = shift
    around = np.full((3, 3, 5), np.nan, np.float32)
    cuda_on_cpu.Augmentation(preprocessing).launch(
        content.ctypes.data, allowed.starts, 1, around.ctypes.data + around[0].nbytes
    )
    assert np.isnan(around[[0, 2]]).all()


@pytest.mark.parametrize("sides", [2, 3])
def test_a_large_image_crosses_the_bus_in_the_networks_size(sides: int) -> None:
    """Twice as wide and high is still sent as it is; more would be more bytes than float32."""
    preprocessing = preprocessing_of("rgb", "bicubic", "none", "24x40")
    image = hwc(noise(np.random.default_rng(0), 40 * sides, 24 * sides, 3))
    made = ImagePlan((Axis(40 * sides, 40, 0, 40), Axis(24 * sides, 24, 0, 24)), Colors(9.0, 0.1, -0.1), (0, 0), True)
    pixels = kernel_image(image, made, preprocessing).cut.pixels
    assert pixels.size == image.size if sides**2 <= MOST_SOURCE_PIXELS else pixels.shape == (24, 40, 3)
    assert different_bits([image], [made], preprocessing) == 0


def test_pixels_that_no_window_looks_at_stay_behind() -> None:
    preprocessing = preprocessing_of("rgb", "bilinear", "none", "32x32")
    image = hwc(noise(np.random.default_rng(0), 400, 300, 3))
    made = ImagePlan((Axis(400, 400, 200, 32), Axis(300, 300, 100, 32)), None, (0, 0), False)
    kept = kernel_image(image, made, preprocessing).cut
    assert kept.pixels.shape == (33, 33, 3), "bilinear also loads the next pixel, which counts nothing here"
    assert kept.pixels.base is None, "the rest of the image is given up"
    assert different_bits([image], [made], preprocessing) == 0
