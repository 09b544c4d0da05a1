"""Batches of images for a network, decoded ahead in threads, in order.

Knows no network and no class names. The interpreter's lock is released while an image is decoded and resized.


Batches of decoded images of different sizes, for an executor that resizes a whole batch; decoded ahead in threads.

Knows no network. The batches that `stream` makes are preprocessed already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.errors import DataError
from trt_cls.preprocessing.cpu import preprocess
from trt_cls.preprocessing.gate import holding
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Floats, Pixels, axes, table

BATCHES_AHEAD = 2
"""Batches in work beside the one that was handed out last."""


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    path: Path
    reason: str


def skipped(path: Path, error: DataError) -> Skipped:
    """The image at `path` as skipped because of `error`, whose message need not repeat the path."""
    return Skipped(path, str(error).removeprefix(f"{path}: "))


@dataclass(frozen=True)
class Batch:
    """Images [n,C,H,W] with their samples, n of each, and what was skipped among them."""

    images: Floats
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


def stream(
    samples: Sequence[Sample], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """All `samples` in batches, in order, the last partial batch too.

    A batch covers `batch_size` samples; each image that can't be used leaves it with a row less, down to none.
    `workers` is the number of threads; 0 works in the caller's.
    """
    groups = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    with ExitStack() as stack:
        run: _Map = map  # lazy: works in the caller's thread, when a batch is finished
        if workers:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="trt-cls-images")
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        ahead: deque[_Started] = deque()
        for group in groups:
            images = np.empty((len(group), *preprocessing.input_shape), preprocessing.input_type)
            ahead.append((group, images, run(partial(_fill, preprocessing), group, images)))
            if len(ahead) > BATCHES_AHEAD:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())


_Started = tuple[Sequence[Sample], Floats, Iterator[Skipped | None]]
"""The samples of a batch, the array that is being filled, and what comes of each sample."""
_Map = Callable[[Callable[[Sample, Floats], Skipped | None], Sequence[Sample], Floats], Iterator[Skipped | None]]


def _fill(preprocessing: Preprocessing, sample: Sample, out: Floats) -> Skipped | None:
    try:
        with holding():
            preprocess(read(sample.path, preprocessing.channels), preprocessing, out)
    except DataError as error:
        return skipped(sample.path, error)
    return None


def _finished(group: Sequence[Sample], images: Floats, outcomes: Iterator[Skipped | None]) -> Batch:
    losses = list(outcomes)
    if any(losses):
        images = images[[loss is None for loss in losses]]
    kept = tuple(sample for sample, loss in zip(group, losses, strict=True) if loss is None)
    return Batch(images, kept, tuple(loss for loss in losses if loss is not None))


@dataclass(frozen=True)
class DecodedBatch:
    """Images [height,width,channels] with their samples, as many of each, and what was skipped among them."""

    images: tuple[Pixels, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]


def decoded(
    samples: Sequence[Sample], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Generator[DecodedBatch]:
    """All `samples` in batches as `stream.stream` makes them, without the images that `preprocessing` can't take."""
    groups = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    with ExitStack() as stack:
        run: _PixelMap = map  # lazy: works in the caller's thread, when a batch is finished
        if workers:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="trt-cls-images")
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        ahead: deque[tuple[Sequence[Sample], Iterator[Pixels | Skipped]]] = deque()
        for group in groups:
            ahead.append((group, run(partial(_pixels, preprocessing), group)))
            if len(ahead) > BATCHES_AHEAD:
                yield _finished_pixels(*ahead.popleft())
        while ahead:
            yield _finished_pixels(*ahead.popleft())


_PixelMap = Callable[[Callable[[Sample], Pixels | Skipped], Sequence[Sample]], Iterator[Pixels | Skipped]]


def _pixels(preprocessing: Preprocessing, sample: Sample) -> Pixels | Skipped:
    try:
        pixels = read(sample.path, preprocessing.channels)
        # Refuses what is too long and thin, and leaves the weights in the cache: they take a third of a millisecond.
        for axis in axes((pixels.shape[1], pixels.shape[0]), preprocessing):
            table(axis, preprocessing.filter)
        return pixels
    except DataError as error:
        return skipped(sample.path, error)


def _finished_pixels(group: Sequence[Sample], outcomes: Iterator[Pixels | Skipped]) -> DecodedBatch:
    done = list(zip(group, outcomes, strict=True))
    return DecodedBatch(
        images=tuple(outcome for _, outcome in done if not isinstance(outcome, Skipped)),
        samples=tuple(sample for sample, outcome in done if not isinstance(outcome, Skipped)),
        skipped=tuple(outcome for _, outcome in done if isinstance(outcome, Skipped)),
    )
