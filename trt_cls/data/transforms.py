"""RandAugment, random erasing and cutmix, by torchvision's own transforms; batches are what the loader makes of them.

torchvision draws from torch's generator: here from one seeded by the place in the training, torch's own is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from random import Random
from types import ModuleType
from typing import Any

import numpy as np

from trt_cls.errors import MissingDependency
from trt_cls.preprocessing.pillow import Floats, Pixels
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

        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        with _drawing(self._seed, epoch, "rand_augment", index):
            changed: Pixels = self._rand_augment(image).numpy().transpose(1, 2, 0)
        return changed

    def erase(self, image: Floats, epoch: int, index: int) -> None:
        """Sets a rectangle of the normalized image, [C,H,W], to zero, or leaves the image as it is."""
        if not self._extensions.random_erasing:
            return
        import torch

        with _drawing(self._seed, epoch, "random_erasing", index):
            self._random_erasing(torch.from_numpy(image))

    def cutmix(self, images: Floats, targets: Floats, epoch: int, step: int) -> tuple[Floats, Floats]:
        """Images [n,C,H,W] with a rectangle from the one before, and targets [n,classes] mixed as the areas are."""
        import torch

        with _drawing(self._seed, epoch, "cutmix", step):
            mixed = self._cutmix(torch.from_numpy(images), torch.from_numpy(targets))
        return mixed[0].numpy(), mixed[1].numpy()

    @cached_property
    def _rand_augment(self) -> Any:
        asked = self._extensions.rand_augment
        return _torchvision().RandAugment(asked.num_ops, asked.magnitude) if asked else None

    @cached_property
    def _random_erasing(self) -> Any:
        return _torchvision().RandomErasing(self._extensions.random_erasing, inplace=True)

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
