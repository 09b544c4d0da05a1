"""Training batches for torch, made in worker processes: complete, or packed for a GPU that does all but decoding.

Every draw comes from a generator seeded with the seed, the epoch and the place in it, so batches are the same for any
number of workers and for a training that is resumed in an epoch. Does not know: networks, devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import (
    ImagePlan,
    Mixing,
    apply,
    draws_for,
    mixup_shares,
    plan,
    smoothed_labels,
    smoothed_targets,
)
from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.data.stream import Skipped, skipped
from trt_cls.data.transforms import Part, Transforms, bundle, part
from trt_cls.data.workers import Workers
from trt_cls.errors import DataError
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Floats, Pixels, normalize
from trt_cls.spec.experiment import NO_EXTENSIONS, Extensions, TrainConfig


@dataclass(frozen=True)
class TrainingBatch:
    """Images float32 [n,C,H,W], targets float32 [n,classes], smoothed and mixed, and the skipped images.

    n is 0 where all images of the batch were skipped.
    """

    images: torch.Tensor
    targets: torch.Tensor
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class PackedBatch:
    """What a TrainingBatch is made from: decoded images, and everything that was drawn for them."""

    bundle: torch.Tensor
    """A `packing.Bundle`, uint8."""
    starts: tuple[int, ...]
    """Of the bundle."""
    count: int
    """Number of images; may be 0."""
    mixing: Mixing
    """For the images once they are made; the targets are mixed already."""
    targets: torch.Tensor
    skipped: tuple[Skipped, ...]


def pinned(value: Any) -> Any:
    """A batch with its tensors in page-locked memory."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: pinned(getattr(value, field.name)) for field in fields(value)})


@dataclass(frozen=True)
class _Order:
    """One batch to make: what a worker needs to know."""

    epoch: int
    step: int
    """Number of the batch in the epoch, over all processes."""
    samples: tuple[tuple[int, Sample], ...]
    """Each with the number that its draws come from: its index in the dataset, plus the dataset's size for each time
    that it came before in this epoch."""


class TrainingLoader:
    """All images of a folder once an epoch, in an order drawn anew for each epoch.

    With extensions.balanced_sampling an epoch has as many images, of each class equally many: a class with fewer gives
    its images again, with other draws of augmentation; one with more gives a part, drawn anew for each epoch.

    At most n_workers processes work ahead, and no more than there are processors or batches.
    The last partial batch is kept; where it would hold a single image, which batch normalization can't train on, that
    image joins the batch before.

    Process `rank` of `world_size` that train together gets its share of batches of batch_size_per_gpu · world_size: the
    shares of a step together are the batch that one process with that batch size would get.

    With extensions.repeated_augment each image comes that often in a row, and an epoch ends after as many images.

    `pack` leaves the images to the GPU's kernel, which has no rand_augment, trivial_augment and crop_padding. With
    a `gpu` batches are in page-locked memory for it. Processes are started for the first epoch; `close` ends them.
    """

    def __init__(
        self,
        folder: ImageFolder,
        preprocessing: Preprocessing,
        train_config: TrainConfig,
        rank: int = 0,
        world_size: int = 1,
        extensions: Extensions = NO_EXTENSIONS,
        *,
        pack: bool = False,
        gpu: int | None = None,
    ) -> None:
        batch_size = train_config.batch_size_per_gpu * world_size
        self._orders = _Orders(folder.samples, batch_size, train_config.random_seed, rank, world_size, extensions)
        self._make = _Batches(preprocessing, train_config, extensions, len(folder.classes), pack=pack)
        self._count = min(train_config.n_workers, self._orders.steps, _processors())
        self._workers: Workers | None = None
        self._gpu = gpu

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return self._orders.steps

    def epoch(self, number: int, start_step: int = 0) -> Iterator[TrainingBatch | PackedBatch]:
        """The batches of epoch `number`, from `start_step` on.

        Raises:
            LoaderError: a worker process died or failed.
        """
        orders = self._orders.of_epoch(number, start_step)
        if not self._count:
            return (made if self._gpu is None else pinned(made) for made in map(self._make, orders))
        if self._workers is None:
            self._workers = Workers(self._make, self._count, __name__, self._gpu)
        return self._workers.map(orders)

    def close(self) -> None:
        """Ends the worker processes."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None


class _Orders:
    """The samples of each batch of an epoch; used in the main process, so that workers have no state."""

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        extensions: Extensions,
    ) -> None:
        self._samples = samples
        self._balanced, self._repeats = extensions.balanced_sampling, extensions.repeated_augment
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        full, rest = divmod(len(samples), batch_size)
        self.steps = full if rest == 1 and full else full + (rest > 0)

    def of_epoch(self, epoch: int, start_step: int) -> Iterator[_Order]:
        size, rng = len(self._samples), Random(f"{self._seed}/{epoch}")
        indices = self._equally_many(rng) if self._balanced else list(range(size))
        rng.shuffle(indices)
        if self._repeats > 1:
            indices = [index + again * size for index in indices for again in range(self._repeats)][:size]
        for step in range(start_step, self.steps):
            start = step * self._batch_size
            end = start + self._batch_size if step + 1 < self.steps else len(indices)
            share = tuple((index, self._samples[index % size]) for index in self._share(indices[start:end]))
            yield _Order(epoch, step * self._world_size + self._rank, share)

    def _equally_many(self, rng: Random) -> list[int]:
        """As many images of each class, but for one; the k-th repetition of an image is its index plus k sizes."""
        size, drawn = len(self._samples), []
        of_class: dict[int, list[int]] = {}
        for index, sample in enumerate(self._samples):
            of_class.setdefault(sample.label, []).append(index)
        quota, rest = divmod(size, len(of_class))
        one_more = set(rng.sample(sorted(of_class), rest))
        for label, images in of_class.items():
            left = quota + (label in one_more)
            for start in range(0, left, len(images)):
                again = start // len(images) * size
                drawn += [index + again for index in rng.sample(images, min(len(images), left - start))]
        return drawn

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        """This process's share of a batch: an even one, but at least two images, or none."""
        sharers = max(1, min(self._world_size, len(indices) // 2))
        return indices[self._rank :: sharers] if self._rank < sharers else ()


class _Batches:
    """Makes the batch of an order; the part of the loader that is sent to the workers."""

    def __init__(
        self, preprocessing: Preprocessing, train: TrainConfig, extensions: Extensions, classes: int, *, pack: bool
    ) -> None:
        self._preprocessing = preprocessing
        self._train, self._extensions = train, extensions
        self._transforms = Transforms(extensions, train.random_seed)
        self._classes = classes
        self._pack = pack

    def __call__(self, order: _Order) -> TrainingBatch | PackedBatch:
        readable: list[Sample] = []
        losses: list[Skipped] = []
        planned = self._planned(order, readable, losses)
        if self._pack:
            parts = [part(pixels, drawn, self._preprocessing) for _, pixels, drawn in planned]
            mixing, targets = self._mixing(readable, order)
            return PackedBatch(*self._bundled(parts), len(parts), mixing, targets, tuple(losses))
        images = torch.from_numpy(self._images(planned, order))
        mixing, targets = self._mixing(readable, order)
        return TrainingBatch(mixing.images(images), targets, tuple(losses))

    def _planned(
        self, order: _Order, readable: list[Sample], losses: list[Skipped]
    ) -> Iterator[tuple[int, Pixels, ImagePlan]]:
        """The readable images, each with its index and its plan; adds to readable and losses."""
        channels, shape = self._preprocessing.channels, self._preprocessing.input_shape
        for index, sample in order.samples:
            rng = draws_for(self._train.random_seed, order.epoch, index)
            try:
                pixels = self._transforms.cropped(read(sample.path, channels), order.epoch, index)
                size = pixels.shape[1], pixels.shape[0]
                drawn = plan(size, self._preprocessing, self._train, rng, self._extensions)
            except DataError as error:
                losses.append(skipped(sample.path, error))
                continue
            readable.append(sample)
            yield index, pixels, drawn._replace(erased=self._transforms.erased(shape, order.epoch, index))

    def _images(self, planned: Iterator[tuple[int, Pixels, ImagePlan]], order: _Order) -> Floats:
        """Augmented and normalized, [n,C,H,W]."""
        images = np.empty((len(order.samples), *self._preprocessing.input_shape), np.float32)
        count = 0
        for index, pixels, drawn in planned:
            pixels = apply(drawn, pixels, self._preprocessing.filter)
            normalize(self._transforms.changed(pixels, order.epoch, index), self._preprocessing, images[count])
            left, top, right, bottom = drawn.erased
            images[count, :, top:bottom, left:right] = 0
            count += 1
        return images[:count]

    def _bundled(self, parts: Sequence[Part]) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The bundle of all parts, and the offsets of its arguments."""
        if not parts:
            return torch.empty(0, dtype=torch.uint8), ()
        made = bundle(parts, self._preprocessing)
        content = torch.empty(made.size, dtype=torch.uint8)
        made.write(content.numpy())
        return content, made.starts

    def _mixing(self, readable: list[Sample], order: _Order) -> tuple[Mixing, torch.Tensor]:
        """How the images are mixed, and the mixed targets."""
        mixing = self._drawn_mixing(len(readable), order) if readable else Mixing()
        smoothing = self._train.label_smoothing
        if self._extensions.labels:
            targets = smoothed_labels([sample.indices for sample in readable], self._classes, smoothing)
        else:
            targets = smoothed_targets([sample.label for sample in readable], self._classes, smoothing)
        return mixing, mixing.targets(torch.from_numpy(targets))

    def _drawn_mixing(self, images: int, order: _Order) -> Mixing:
        """Mixup or cutmix; where both are asked for, each batch draws one with equal probability."""
        mixes, cuts = self._train.mixup_alpha > 0, self._extensions.cutmix_alpha > 0
        place = f"{self._train.random_seed}/{order.epoch}"
        if cuts and (not mixes or Random(f"{place}/coin/{order.step}").random() < 0.5):
            return self._transforms.cutmix(self._preprocessing.input_shape, order.epoch, order.step)
        if mixes:
            rng = Random(f"{place}/mixup/{order.step}")
            return Mixing(torch.from_numpy(mixup_shares(images, self._train.mixup_alpha, rng)))
        return Mixing()


def _processors() -> int:
    """Processors that this process may use; more workers only take memory."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
