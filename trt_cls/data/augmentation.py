"""Augmentation of training images (random crop or shift, colors, flip) and of batches (label smoothing, mixup, cutmix).

Everything random about an image is drawn first, as a plan. The plan is applied here, on the CPU, or by the GPU's kernel
on what `transforms.kernel_image` makes of it. Every function that draws takes the generator, so a seed determines all
results. Mixing takes torch's tensors, on any device, without importing torch. Does not know: files, processes.

Differences from TAO, where it fails or contradicts its documentation: an image that has the network's size already is
not cropped, as in TAO, but its colors still change; where rounding leaves the resized image one pixel short of the
crop, it is resized to the crop's size instead of failing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.cpu import window
from trt_cls.preprocessing.pillow import Axis, Filter, Floats, Pixels, axes, covering_size, hwc
from trt_cls.spec.experiment import NO_EXTENSIONS, Extensions, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_CROP = 0.45
"""A crop's side as a share of the image's, at least, along the tighter axis."""
HUE, SATURATION, CONTRAST = 25.0, 0.2, 0.1
"""Largest change of the hue in degrees, of the saturation, and of the contrast's factor."""


def draws_for(seed: int, epoch: int, index: int) -> Random:
    """The generator for one image of a dataset in one epoch."""
    return Random(f"{seed}/{epoch}/{index}")


class Colors(NamedTuple):
    """A change of colors: of the hue in degrees, of the saturation, and of the contrast's factor."""

    hue: float
    saturation: float
    contrast: float


class Box(NamedTuple):
    """A rectangle of pixels; `right` and `bottom` are the first ones beyond."""

    left: int
    top: int
    right: int
    bottom: int


EMPTY = Box(0, 0, 0, 0)


class ImagePlan(NamedTuple):
    """How one image is augmented, in this order."""

    both: tuple[Axis, Axis]
    """The resize and the crop, across and down."""
    colors: Colors | None
    shift: tuple[int, int]
    """How far down and across the crop is moved; its reflection fills the gaps."""
    mirrored: bool
    erased: Box = EMPTY
    """Set to zero after normalization, in the mirrored image."""


def plan(
    size: tuple[int, int],
    preprocessing: Preprocessing,
    train: TrainConfig,
    rng: Random,
    extensions: Extensions = NO_EXTENSIONS,
) -> ImagePlan:
    """Draws how an image of `size`, (width, height), is augmented; erased boxes are drawn elsewhere.

    Without enable_random_crop the image is fitted as for validation, shifted by crop_padding, and keeps its colors.
    With random_resized_crop it is the crop already, and is resized to the network's size.

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    colors, shift = None, (0, 0)
    if train.enable_random_crop:
        both = _random_crop(size, preprocessing, rng)
        if train.enable_color_augmentation and preprocessing.channels == 3:
            colors = Colors(*(rng.uniform(-most, most) for most in (HUE, SATURATION, CONTRAST)))
    elif extensions.random_resized_crop:
        (width, height), across, down = size, preprocessing.width, preprocessing.height
        both = Axis(width, across, 0, across), Axis(height, down, 0, down)
    else:
        both = axes(size, preprocessing)
        if padding := extensions.crop_padding:
            shift = rng.randint(-padding, padding), rng.randint(-padding, padding)
    mirrored = not train.disable_horizontal_flip and rng.random() < 0.5
    return ImagePlan(both, colors, shift, mirrored)


def augment(
    image: Image.Image | Pixels,
    preprocessing: Preprocessing,
    train: TrainConfig,
    rng: Random,
    extensions: Extensions = NO_EXTENSIONS,
) -> Pixels:
    """Plans and augments one decoded image, [H,W,C].

    Raises:
        DataError: the image is too long and thin for a crop.
    """
    pixels = hwc(image)
    size = pixels.shape[1], pixels.shape[0]
    return apply(plan(size, preprocessing, train, rng, extensions), pixels, preprocessing.filter)


def apply(plan: ImagePlan, pixels: Pixels, filter_name: Filter) -> Pixels:
    """A decoded image augmented by its plan, [H,W,C]; nothing is erased yet."""
    pixels = window(pixels, plan.both, filter_name)
    if plan.colors:
        pixels = change_colors(pixels, *plan.colors)
    if plan.shift != (0, 0):
        pixels = _shifted(pixels, *plan.shift)
    return pixels[:, ::-1] if plan.mirrored else pixels


def change_colors(pixels: Pixels, hue: float, saturation: float, contrast: float) -> Pixels:
    """RGB pixels [H,W,3] with the hue rotated by degrees, saturation shifted, and contrast scaled by 1 + `contrast`.

    TAO's sequence, two conversions to HSV and back, in the float32 operations of OpenCV's vector loop, to the bit.
    OpenCV takes the first channel as blue, so the hue rotates the other way; TAO passes RGB all the same.
    """
    planes = np.ascontiguousarray(pixels.reshape(-1, 3).T).astype(np.float32)
    planes /= np.float32(255)
    h, s, v = _hsv(planes)
    h += np.float32(hue)
    h -= np.float32(360) * (h > 360)
    h += np.float32(360) * (h < 0)
    h, s, v = _hsv(_rgb(h, s, v))
    s += np.float32(saturation)
    planes = _rgb(h, np.clip(s, 0, 1, out=s), v)
    planes -= np.float32(0.5)
    planes *= np.float32(1 + contrast)
    planes += np.float32(0.5)
    planes = np.clip(planes, 0, 1, out=planes)
    planes *= np.float32(255)
    changed = np.empty_like(pixels)
    for channel, plane in enumerate(planes):  # one by one: three times as fast as a transposed copy
        changed[..., channel] = plane.reshape(pixels.shape[:2])
    return changed


def smoothed_targets(labels: list[int], classes: int, smoothing: float) -> Floats:
    """A row for each label, [n,classes]: the share `smoothing` spread over all classes, the rest on the label."""
    one_hot = np.eye(classes, dtype=np.float32)[np.array(labels, np.intp)]
    return one_hot * np.float32(1 - smoothing) + np.float32(smoothing / classes)


def smoothed_labels(labels: Sequence[Sequence[int]], classes: int, smoothing: float) -> Floats:
    """A row for each image with any number of labels, [n,classes]: y · (1 - smoothing) + smoothing / 2."""
    targets = np.full((len(labels), classes), smoothing / 2, np.float32)
    for row, indices in zip(targets, labels, strict=True):
        row[list(indices)] = 1 - smoothing / 2
    return targets


def mixup_shares(images: int, alpha: float, rng: Random) -> Floats:
    """The share that each of `images` keeps when it is mixed with another, [n].

    It is max(b, 1 - b) with b from Beta(alpha, alpha), drawn for each image separately.
    """
    draws = [rng.betavariate(alpha, alpha) for _ in range(images)]
    return np.array([max(draw, 1 - draw) for draw in draws], np.float32)


@dataclass(frozen=True)
class Mixing:
    """Mixup with `shares`, cutmix with a `box`, nothing without either."""

    shares: Tensor | None = None
    """What each image keeps of itself, [n]; the rest comes from the image at the mirrored index of the batch."""
    box: Box | None = None
    """What each image takes from the one before it."""
    kept: float = 1.0
    """The share of an image outside `box`."""

    def images(self, images: Tensor) -> Tensor:
        """`images`, [n,C,H,W], mixed; they may be changed in place."""
        if self.shares is not None:
            return _mixed(images, self.shares.to(images.device, non_blocking=True)[:, None, None, None])
        if self.box is not None:
            left, top, right, bottom = self.box
            images[..., top:bottom, left:right] = images[..., top:bottom, left:right].roll(1, 0)
        return images

    def targets(self, targets: Tensor) -> Tensor:
        """`targets`, [n,classes], mixed as the images are."""
        if self.shares is not None:
            return _mixed(targets, self.shares[:, None])
        if self.box is not None:
            return targets.roll(1, 0) * (1.0 - self.kept) + targets * self.kept
        return targets


def _random_crop(size: tuple[int, int], preprocessing: Preprocessing, rng: Random) -> tuple[Axis, Axis]:
    """A crop in the network's size; an image of that size is not cropped."""
    width, height = target = preprocessing.width, preprocessing.height
    if size == target:
        return Axis(width, width, 0, width), Axis(height, height, 0, height)
    share = rng.uniform(SMALLEST_CROP, 1)
    covering = covering_size(size, (width / share, height / share))
    resized = max(covering[0], width), max(covering[1], height)
    left = rng.randint(0, resized[0] - width)
    top = rng.randint(0, resized[1] - height)
    return Axis(size[0], resized[0], left, width), Axis(size[1], resized[1], top, height)


def _shifted(pixels: Pixels, down: int, across: int) -> Pixels:
    """The pixels [H,W,C] moved by less than either side and reflected at the edges, whose pixels are not repeated."""
    height, width = pixels.shape[:2]
    return pixels.take(_reflected(down, height), axis=0).take(_reflected(across, width), axis=1)


def _reflected(start: int, side: int) -> NDArray[np.intp]:
    """Source index of each pixel of a line of `side` shifted by `start`, reflected at its ends."""
    inside = np.abs(np.arange(start, start + side))
    places: NDArray[np.intp] = side - 1 - np.abs(side - 1 - inside)
    return places


def _hsv(planes: Floats) -> tuple[Floats, Floats, Floats]:
    """Hue in 0..360, saturation and value in 0..1.

    Masks are multiplied: `np.where` and `np.copyto` branch on every pixel and take ten times as long.
    """
    blue, green, red = planes
    value = np.maximum(np.maximum(blue, green), red)
    spread = value - np.minimum(np.minimum(blue, green), red)
    epsilon = np.finfo(np.float32).eps
    saturation = spread / (value + epsilon)
    scale = np.float32(60) / (spread + epsilon)
    red_is_top = value == red
    green_is_top = (value == green) & ~red_is_top
    blue_is_top = ~(red_is_top | green_is_top)
    distance = (green - blue) * red_is_top
    distance += (blue - red) * green_is_top
    distance += (red - green) * blue_is_top
    start = (red_is_top & (green < blue)) * np.float32(360)
    start += green_is_top * np.float32(120)
    start += blue_is_top * np.float32(240)
    return _fused(distance, scale, start), saturation, value


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """The inverse of `_hsv`: each channel is the value less 0, 1 or a slope of the saturation, by sector of the hue."""
    h = hue * np.float32(6 / 360)
    below = (np.maximum(3 - h, h - 5), np.maximum(1 - h, h - 3), np.minimum(h - 1, 5 - h))
    one = np.float32(1)
    return np.stack([value * _fused(-saturation, np.clip(share, 0, 1, out=share), one) for share in below])


def _fused(a: Floats, b: Floats, c: Floats | np.float32) -> Floats:
    """`a * b + c` rounded to float32 once, as a processor's fused multiply-add does."""
    product = np.multiply(a, b, dtype=np.float64)
    product += c
    return product.astype(np.float32)


def _mixed(rows: Tensor, shares: Tensor) -> Tensor:
    """Four operations that each round separately, so that every device gives the same result."""
    return (rows * shares).add_(rows.flip(0).mul_(1 - shares))
