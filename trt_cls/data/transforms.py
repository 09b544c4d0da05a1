"""Augmentation by torchvision, with its draws, and planned images for the kernel.

torchvision draws from torch's generator, which is seeded here by the place in the training and restored afterwards.
Does not know: devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import EMPTY, Box, ImagePlan, Mixing
from trt_cls.errors import require
from trt_cls.preprocessing.cpu import window
from trt_cls.preprocessing.packing import CHANGE, Bundle, Cut, cut, pack_cuts
from trt_cls.preprocessing.pillow import Axis, Pixels
from trt_cls.spec.experiment import Extensions

MOST_SOURCE_PIXELS = 4
"""For each pixel of the output: they then take no more bytes than the output in float32."""
CHANGES: dict[str, Callable[..., Any]] = {
    "rand_augment": lambda v2, asked: v2.RandAugment(asked.num_ops, asked.magnitude),
    "trivial_augment": lambda v2, asked: v2.TrivialAugmentWide(),
}
"""By the field of `extensions`: torchvision's transform of an image in the network's size, from the field's value.

The GPU's kernel has none of them.
"""


class Transforms:
    """The transforms that `extensions` ask for."""

    def __init__(self, extensions: Extensions, seed: int) -> None:
        self._extensions, self._seed = extensions, seed
        self._made: dict[str, Any] = {}

    def changed(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """Image number `index` of the dataset, [H,W,C], changed as `CHANGES` say, in their order."""
        for name, transform in CHANGES.items():
            asked = getattr(self._extensions, name)
            if not asked:
                continue
            import torch

            change = self._once(name, partial(transform, asked=asked))
            image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
            with _seeded(self._seed, epoch, name, index):
                pixels = change(image).numpy().transpose(1, 2, 0)
        return pixels

    def cropped(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """The part of image number `index`, [H,W,C], that RandomResizedCrop takes, not resized yet."""
        asked = self._extensions.random_resized_crop
        if asked is None:
            return pixels
        import torch

        ranges = (asked.min_scale, asked.max_scale), (asked.min_ratio, asked.max_ratio)
        size = 1, 1  # has no part in the draws
        crop = self._once("random_resized_crop", lambda v2: v2.RandomResizedCrop(size, *ranges))
        with _seeded(self._seed, epoch, "random_resized_crop", index):
            drawn = crop.make_params([torch.empty((1, *pixels.shape[:2]), device="meta")])
        top, left = drawn["top"], drawn["left"]
        return np.ascontiguousarray(pixels[top : top + drawn["height"], left : left + drawn["width"]])

    def erased(self, shape: tuple[int, int, int], epoch: int, index: int) -> Box:
        """The rectangle erased from image number `index`, [C,H,W]."""
        if not self._extensions.random_erasing:
            return EMPTY
        import torch

        probability = self._extensions.random_erasing
        erasing = self._once("random_erasing", lambda v2: v2.RandomErasing(probability))
        with _seeded(self._seed, epoch, "random_erasing", index):
            if torch.rand(1) >= erasing.p:
                return EMPTY
            drawn = erasing.make_params([torch.empty(shape, device="meta")])
        if drawn["v"] is None:  # no rectangle fits
            return EMPTY
        return Box(drawn["j"], drawn["i"], drawn["j"] + drawn["w"], drawn["i"] + drawn["h"])

    def cutmix(self, shape: tuple[int, int, int], epoch: int, step: int) -> Mixing:
        """How a batch of images [C,H,W] is mixed."""
        import torch

        mix = self._once("cutmix_alpha", lambda v2: v2.CutMix(alpha=self._extensions.cutmix_alpha))
        with _seeded(self._seed, epoch, "cutmix", step):
            drawn = mix.make_params([torch.empty((1, *shape), device="meta")])
        return Mixing(box=Box(*drawn["box"]), kept=drawn["lam_adjusted"])

    def _once(self, name: str, make: Callable[[ModuleType], Any]) -> Any:
        """The transform of torchvision for this field of `extensions`; made for each image it cost a sixth more."""
        if name not in self._made:
            self._made[name] = make(_torchvision(name))
        return self._made[name]


class KernelImage(NamedTuple):
    """One image of a batch for the kernel: only the pixels that it reads."""

    cut: Cut
    plan: ImagePlan


def kernel_image(pixels: Pixels, plan: ImagePlan, preprocessing: Preprocessing) -> KernelImage:
    """A decoded image for the kernel; a large one is resized here, and the rest of its plan is left to the kernel."""
    wanted = cut(pixels, plan.both, preprocessing.filter)
    if wanted.pixels[..., 0].size > MOST_SOURCE_PIXELS * preprocessing.height * preprocessing.width:
        across, down = (Axis(axis.outputs, axis.outputs, 0, axis.outputs) for axis in plan.both)
        return KernelImage(Cut(window(pixels, plan.both, preprocessing.filter), 0, 0, (across, down)), plan)
    if wanted.pixels.size < pixels.size:  # frees the rest of the image
        wanted = wanted._replace(pixels=wanted.pixels.copy())
    return KernelImage(wanted, plan)


def bundle(images: Sequence[KernelImage], preprocessing: Preprocessing) -> Bundle:
    """The batch of one or more images."""
    changes = np.array([_change(image.plan) for image in images], CHANGE)
    return Bundle(pack_cuts([image.cut for image in images], preprocessing.filter), preprocessing, changes)


@contextmanager
def _seeded(*place: object) -> Iterator[None]:
    import torch

    before = torch.get_rng_state()
    torch.default_generator.manual_seed(Random("/".join(map(str, place))).getrandbits(63))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _torchvision(name: str) -> ModuleType:
    return require("torchvision.transforms.v2", f"extensions.{name}", "train", package="torchvision")


def _change(plan: ImagePlan) -> tuple[float, float, float, bool, bool, tuple[int, int], tuple[int, ...]]:
    hue, saturation, contrast = plan.colors or (0.0, 0.0, 0.0)
    return hue, saturation, 1 + contrast, plan.colors is not None, plan.mirrored, plan.shift, tuple(plan.erased)
