"""Batches of images in order, decoded ahead in threads: as the network's input, or as pixels of different sizes.

The interpreter's lock is released while an image is decoded and resized. Does not know: networks, class names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, TypeVar

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.data.readahead import ReadAhead
from trt_cls.data.samples import Sample, Samples
from trt_cls.data.samples import Skipped as Skipped
from trt_cls.errors import DataError
from trt_cls.preprocessing.cpu import preprocess
from trt_cls.preprocessing.image_file import holding
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Floats, Pixels, axes, filter_table

WORKERS = 4
"""Threads that read images where no flag or spec says how many."""
T = TypeVar("T")
BATCHES_AHEAD = 2
"""Batches in work beside the one that was returned last."""


def skipped(sample: Sample, error: DataError) -> Skipped:
    """An image as skipped because of `error`, whose message need not repeat the path."""
    return Skipped(sample.path, str(error).removeprefix(f"{sample.path}: "), sample.label, sample.labels)


@dataclass(frozen=True)
class Batch:
    """Images [n,C,H,W] with their samples, n of each, and the skipped images of the batch."""

    images: Floats
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class DecodedBatch:
    """Images [height,width,channels] of different sizes with their samples, and the skipped images of the batch."""

    images: tuple[Pixels, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


def stream(
    samples: Sequence[Sample], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Generator[Batch]:
    """All `samples` in batches of preprocessed images, in order, the last partial batch included.

    A batch covers `batch_size` samples; it has a row less for each image that can't be used, down to none. `workers` is
    the number of threads; with 0 the caller's thread does the work.
    """

    def empty(size: int) -> Floats:
        return np.empty((size, *preprocessing.input_shape), preprocessing.input_type)

    def put(images: Floats, place: int, sample: Sample) -> None:
        preprocess(read(sample.source, preprocessing.channels), preprocessing, images[place])

    with closing(_read_ahead(samples, empty, put, batch_size, workers)) as batches:
        for images, kept, chosen, lost in batches:
            yield Batch(images if all(kept) else images[kept], chosen, lost)


def decoded_batches(
    samples: Sequence[Sample], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Generator[DecodedBatch]:
    """The batches of `stream` before preprocessing, for an executor that resizes a batch at once."""

    def empty(size: int) -> list[Any]:
        return [None] * size

    def put(images: list[Any], place: int, sample: Sample) -> None:
        images[place] = pixels = read(sample.source, preprocessing.channels)
        # Refuses what is too long and thin, and leaves the weights in the cache: they take a third of a millisecond.
        for axis in axes((pixels.shape[1], pixels.shape[0]), preprocessing):
            filter_table(axis, preprocessing.filter)

    with closing(_read_ahead(samples, empty, put, batch_size, workers)) as batches:
        for images, kept, chosen, lost in batches:
            yield DecodedBatch(tuple(compress(images, kept)), chosen, lost)


_Put = Callable[[T, int, Sample], None]
"""Reads a sample into its place among the images of a batch."""


def _read_ahead(
    samples: Sequence[Sample], empty: Callable[[int], T], put: _Put[T], batch_size: int, workers: int
) -> Generator[tuple[T, list[bool], tuple[Sample, ...], tuple[Skipped, ...]]]:
    """Batches of images, each with the places that were filled, the samples there, and the skipped images."""
    groups = (tuple(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size))
    with ExitStack() as stack:
        run: Any = map  # lazy: works in the caller's thread, when a batch is finished
        if workers:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="trt-cls-images")
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        ahead: deque[Any] = deque()
        shards = stack.enter_context(closing(ReadAhead(samples)))
        if isinstance(samples, Samples) and shards.copies:
            shards.comes(samples)
        for group in groups:
            shards.expect(group)
            images = empty(len(group))
            ahead.append((images, group, run(partial(_outcome, put, images), range(len(group)), group)))
            if len(ahead) > BATCHES_AHEAD:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())


def _outcome(put: _Put[T], images: T, place: int, sample: Sample) -> Skipped | None:
    try:
        with holding():
            put(images, place, sample)
    except DataError as error:
        return skipped(sample, error)
    return None


def _finished(images: T, group: Sequence[Sample], outcomes: Iterator[Skipped | None]) -> Any:
    losses = list(outcomes)
    kept = [loss is None for loss in losses]
    return images, kept, tuple(compress(group, kept)), tuple(loss for loss in losses if loss)
