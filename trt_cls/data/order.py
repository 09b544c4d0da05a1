"""The order of an epoch: which images each batch has, for any number of workers and processes, from any step on.

Used in the main process, so that workers have no list of samples and no state. Does not know: the content of files.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from trt_cls.data.samples import Sample, Samples

if TYPE_CHECKING:
    from trt_cls.spec.experiment import Extensions

WINDOW = 8
"""Shards whose images are mixed with one another, see `Orders`."""


@dataclass(frozen=True)
class Order:
    """One batch to make: what a worker needs to know."""

    epoch: int
    step: int
    """Number of the batch in the epoch, over all processes."""
    samples: tuple[tuple[int, Sample], ...]
    """Each with the number that its draws come from: its index in the dataset, plus the dataset's size for each time
    that it came before in this epoch."""


class Orders:
    """The batches of an epoch.

    Files are shuffled. Of images in shards the shards are shuffled, and then the images of each WINDOW of them in a
    row: an epoch reads a few shards at a time, each once.
    """

    def __init__(
        self, samples: Samples, batch_size: int, seed: int, rank: int, world_size: int, extensions: Extensions
    ) -> None:
        self._samples = samples
        self._balanced, self._repeats = extensions.balanced_sampling, extensions.repeated_augment
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        full, rest = divmod(len(samples), batch_size)
        self.steps = full if rest == 1 and full else full + (rest > 0)

    def of_epoch(self, epoch: int, start_step: int, comes: Callable[[Samples], None] | None = None) -> Iterator[Order]:
        """The batches of an epoch from `start_step` on; `comes` gets all images first, in their order."""
        size, rng = len(self._samples), Random(f"{self._seed}/{epoch}")
        indices = self._shuffled(self._equally_many(rng) if self._balanced else array("q", range(size)), rng)
        if self._repeats > 1:
            again = (index + times * size for index in indices for times in range(self._repeats))
            indices = array("q", islice(again, size))
        if comes:
            comes(self._samples.at(np.asarray(indices[start_step * self._batch_size :], np.int64) % size))
        for step in range(start_step, self.steps):
            start = step * self._batch_size
            end = start + self._batch_size if step + 1 < self.steps else len(indices)
            share = tuple((index, self._samples[index % size]) for index in self._share(indices[start:end]))
            yield Order(epoch, step * self._world_size + self._rank, share)

    def _equally_many(self, rng: Random) -> array[int]:
        """Equally many images per class, to within one; the k-th repetition of an image is its index plus k sizes."""
        size, drawn, labels = len(self._samples), array("q"), self._samples.labels
        order = np.argsort(labels, kind="stable")
        classes, starts = np.unique(labels[order], return_index=True)
        quota, rest = divmod(size, len(classes))
        one_more = set(rng.sample(classes.tolist(), rest))
        for label, indices in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
            images, left = indices.tolist(), quota + (label in one_more)
            for start in range(0, left, len(images)):
                again = start // len(images) * size
                drawn.extend(again + index for index in rng.sample(images, min(len(images), left - start)))
        return drawn

    def _shuffled(self, indices: array[int], rng: Random) -> array[int]:
        if self._samples.groups is None:
            rng.shuffle(indices)
            return indices
        shards, shard_of = np.unique(self._samples.groups, return_inverse=True)
        shuffled = list(range(len(shards)))
        rng.shuffle(shuffled)
        windows = np.empty(len(shards), np.int64)
        windows[shuffled] = np.arange(len(shards)) // WINDOW
        window_of = windows[shard_of[np.asarray(indices) % len(self._samples)]]
        order = np.argsort(window_of, kind="stable")
        found = array("q")
        for places in np.split(order, np.flatnonzero(np.diff(window_of[order])) + 1):
            window = array("q", np.asarray(indices)[places].tobytes())
            rng.shuffle(window)
            found += window
        return found

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        """This process's share of a batch: an even one, but at least two images, or none."""
        sharers = max(1, min(self._world_size, len(indices) // 2))
        return indices[self._rank :: sharers] if self._rank < sharers else ()
