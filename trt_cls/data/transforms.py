"""RandAugment, random erasing and cutmix, as torchvision's own transforms draw them.

torchvision draws from torch's generator: here from one seeded by the place in the training, torch's own is put back.


Planned images as what the GPU's kernel for training reads: the source pixels that each needs, and its numbers.

Knows plans and the kernel's arguments; nothing about devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import NOWHERE, Box, Mixing, Plan
from trt_cls.errors import MissingDependency
from trt_cls.preprocessing.cpu import window
from trt_cls.preprocessing.packing import CHANGE, Bundle, Cut, cut, pack_cuts
from trt_cls.preprocessing.pillow import Axis, Pixels
from trt_cls.spec.experiment import Extensions


class Transforms:
    """The transforms that `extensions` ask for; made where they are used, in the process that does."""

    def __init__(self, extensions: Extensions, seed: int) -> None:
        self._extensions = extensions
        self._seed = seed

    def changed(self, pixels: Pixels, epoch: int, index: int) -> Pixels:
        """Image number `index` of the dataset, [H,W,C], changed by RandAugment."""
        if self._extensions.rand_augment is None:
            return pixels
        import torch

        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        with _drawing(self._seed, epoch, "rand_augment", index):
            changed: Pixels = self._rand_augment(image).numpy().transpose(1, 2, 0)
        return changed

    def erased(self, shape: tuple[int, int, int], epoch: int, index: int) -> Box:
        """What image number `index`, [C,H,W], loses."""
        if not self._extensions.random_erasing:
            return NOWHERE
        import torch

        with _drawing(self._seed, epoch, "random_erasing", index):
            if torch.rand(1) >= self._random_erasing.p:
                return NOWHERE
            drawn = self._random_erasing.make_params([torch.empty(shape, device="meta")])
        if drawn["v"] is None:  # no rectangle fits
            return NOWHERE
        return Box(drawn["j"], drawn["i"], drawn["j"] + drawn["w"], drawn["i"] + drawn["h"])

    def cutmix(self, shape: tuple[int, int, int], epoch: int, step: int) -> Mixing:
        """How a batch of images [C,H,W] is mixed."""
        import torch

        with _drawing(self._seed, epoch, "cutmix", step):
            drawn = self._cutmix.make_params([torch.empty((1, *shape), device="meta")])
        return Mixing(box=Box(*drawn["box"]), kept=drawn["lam_adjusted"])

    @cached_property
    def _rand_augment(self) -> Any:
        asked = self._extensions.rand_augment
        return _torchvision().RandAugment(asked.num_ops, asked.magnitude) if asked else None

    @cached_property
    def _random_erasing(self) -> Any:
        return _torchvision().RandomErasing(self._extensions.random_erasing)

    @cached_property
    def _cutmix(self) -> Any:
        return _torchvision().CutMix(alpha=self._extensions.cutmix_alpha)


@contextmanager
def _drawing(*place: object) -> Iterator[None]:
    import torch

    before = torch.get_rng_state()
    torch.default_generator.manual_seed(Random("/".join(map(str, place))).getrandbits(63))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _torchvision() -> ModuleType:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingDependency("torchvision", "rand_augment, random_erasing and cutmix", "train") from error
    found: ModuleType = v2
    return found


LARGEST = 4
"""Source pixels for one of the output, at most: they are then no more bytes than the output in float32."""


class Part(NamedTuple):
    """One image of a batch, without the pixels that nobody will look at."""

    cut: Cut
    plan: Plan


def part(pixels: Pixels, plan: Plan, preprocessing: Preprocessing) -> Part:
    """What a decoded image contributes; a large one is resized here, and its plan carried out but for that."""
    wanted = cut(pixels, plan.both, preprocessing.filter)
    if wanted.pixels[..., 0].size > LARGEST * preprocessing.height * preprocessing.width:
        across, down = (Axis(axis.outputs, axis.outputs, 0, axis.outputs) for axis in plan.both)
        return Part(Cut(window(pixels, plan.both, preprocessing.filter), 0, 0, (across, down)), plan)
    if wanted.pixels.size < pixels.size:  # the rest of the image is given up
        wanted = wanted._replace(pixels=wanted.pixels.copy())
    return Part(wanted, plan)


def bundle(parts: Sequence[Part], preprocessing: Preprocessing) -> Bundle:
    """The batch of one or more parts."""
    changes = np.array([_change(part.plan) for part in parts], CHANGE)
    return Bundle(pack_cuts([part.cut for part in parts], preprocessing.filter), preprocessing, changes)


def _change(plan: Plan) -> tuple[float, float, float, bool, bool, tuple[int, ...]]:
    hue, saturation, contrast = plan.colors or (0.0, 0.0, 0.0)
    return hue, saturation, 1 + contrast, plan.colors is not None, plan.mirrored, tuple(plan.erased)
