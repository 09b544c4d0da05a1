"""Training batches for torch, made in worker processes: complete, or packed for a GPU that does all but decoding.

Every draw comes from a generator seeded with the seed, the epoch and the place in it, so batches are the same for any
number of workers and for a training that is resumed in an epoch. Does not know: networks, devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
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
from trt_cls.data.order import Order, Orders
from trt_cls.data.readahead import ReadAhead
from trt_cls.data.stream import Skipped, skipped
from trt_cls.data.transforms import KernelImage, Transforms, bundle, kernel_image
from trt_cls.data.workers import Workers
from trt_cls.errors import DataError
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Floats, Pixels, normalize
from trt_cls.spec.experiment import NO_EXTENSIONS, Extensions, TrainConfig
from trt_cls.stores import require_shared


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

    `pack` leaves the images to the GPU's kernel, which lacks the fields in `transforms.CHANGES`. With a `gpu`
    batches are in page-locked memory for it. Processes are started for the first epoch; `close` ends them.
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
        self._samples = folder.samples
        self._orders = Orders(folder.samples, batch_size, train_config.random_seed, rank, world_size, extensions)
        self._make = _Batches(preprocessing, train_config, extensions, len(folder.classes), pack=pack)
        self._count = min(train_config.n_workers, self._orders.steps, _processors())
        self._workers: Workers | None = None
        self._gpu = gpu
        if self._count:
            require_shared(folder.root)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return self._orders.steps

    def epoch(self, number: int, start_step: int = 0) -> Iterator[TrainingBatch | PackedBatch]:
        """The batches of epoch `number`, from `start_step` on.

        Raises:
            LoaderError: a worker process died or failed.
        """
        orders = self._expected(number, start_step)
        if not self._count:
            return (made if self._gpu is None else pinned(made) for made in map(self._make, orders))
        if self._workers is None:
            self._workers = Workers(self._make, self._count, __name__, self._gpu)
        return self._workers.map(orders)

    def _expected(self, number: int, start_step: int) -> Iterator[Order]:
        """The orders of an epoch; shards are read ahead for them."""
        with closing(ReadAhead(self._samples)) as shards:
            for order in self._orders.of_epoch(number, start_step, shards.comes if shards.copies else None):
                shards.expect(sample for _, sample in order.samples)
                yield order

    def close(self) -> None:
        """Ends the worker processes."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None


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

    def __call__(self, order: Order) -> TrainingBatch | PackedBatch:
        readable: list[Sample] = []
        losses: list[Skipped] = []
        planned = self._planned(order, readable, losses)
        if self._pack:
            parts = [kernel_image(pixels, drawn, self._preprocessing) for _, pixels, drawn in planned]
            mixing, targets = self._mixing(readable, order)
            return PackedBatch(*self._bundled(parts), len(parts), mixing, targets, tuple(losses))
        images = torch.from_numpy(self._images(planned, order))
        mixing, targets = self._mixing(readable, order)
        return TrainingBatch(mixing.images(images), targets, tuple(losses))

    def _planned(
        self, order: Order, readable: list[Sample], losses: list[Skipped]
    ) -> Iterator[tuple[int, Pixels, ImagePlan]]:
        """The readable images, each with its index and its plan; adds to readable and losses."""
        channels, shape = self._preprocessing.channels, self._preprocessing.input_shape
        for index, sample in order.samples:
            rng = draws_for(self._train.random_seed, order.epoch, index)
            try:
                pixels = self._transforms.cropped(read(sample.source, channels), order.epoch, index)
                size = pixels.shape[1], pixels.shape[0]
                drawn = plan(size, self._preprocessing, self._train, rng, self._extensions)
            except DataError as error:
                losses.append(skipped(sample, error))
                continue
            readable.append(sample)
            yield index, pixels, drawn._replace(erased=self._transforms.erased(shape, order.epoch, index))

    def _images(self, planned: Iterator[tuple[int, Pixels, ImagePlan]], order: Order) -> Floats:
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

    def _bundled(self, parts: Sequence[KernelImage]) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The bundle of all parts, and the offsets of its arguments."""
        if not parts:
            return torch.empty(0, dtype=torch.uint8), ()
        made = bundle(parts, self._preprocessing)
        content = torch.empty(made.size, dtype=torch.uint8)
        made.write(content.numpy())
        return content, made.starts

    def _mixing(self, readable: list[Sample], order: Order) -> tuple[Mixing, torch.Tensor]:
        """How the images are mixed, and the mixed targets."""
        mixing = self._drawn_mixing(len(readable), order) if readable else Mixing()
        smoothing = self._train.label_smoothing
        if self._extensions.labels:
            targets = smoothed_labels([sample.indices for sample in readable], self._classes, smoothing)
        else:
            targets = smoothed_targets([sample.label for sample in readable], self._classes, smoothing)
        return mixing, mixing.targets(torch.from_numpy(targets))

    def _drawn_mixing(self, images: int, order: Order) -> Mixing:
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
