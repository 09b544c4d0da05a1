"""Batches of decoded images of different sizes, for an executor that resizes a whole batch; decoded ahead in threads.

Knows no network. The batches that `stream` makes are preprocessed already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.data.stream import BATCHES_AHEAD, Skipped, skipped
from trt_cls.errors import DataError
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Pixels
from trt_cls.preprocessing.resampling import axes, table


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
        run: _Map = map  # lazy: works in the caller's thread, when a batch is finished
        if workers:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="trt-cls-images")
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        ahead: deque[tuple[Sequence[Sample], Iterator[Pixels | Skipped]]] = deque()
        for group in groups:
            ahead.append((group, run(partial(_pixels, preprocessing), group)))
            if len(ahead) > BATCHES_AHEAD:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())


_Map = Callable[[Callable[[Sample], Pixels | Skipped], Sequence[Sample]], Iterator[Pixels | Skipped]]


def _pixels(preprocessing: Preprocessing, sample: Sample) -> Pixels | Skipped:
    try:
        pixels = read(sample.path, preprocessing.channels)
        # Refuses what is too long and thin, and leaves the weights in the cache: they take a third of a millisecond.
        for axis in axes((pixels.shape[1], pixels.shape[0]), preprocessing):
            table(axis, preprocessing.filter)
        return pixels
    except DataError as error:
        return skipped(sample.path, error)


def _finished(group: Sequence[Sample], outcomes: Iterator[Pixels | Skipped]) -> DecodedBatch:
    done = list(zip(group, outcomes, strict=True))
    return DecodedBatch(
        images=tuple(outcome for _, outcome in done if not isinstance(outcome, Skipped)),
        samples=tuple(sample for sample, outcome in done if not isinstance(outcome, Skipped)),
        skipped=tuple(outcome for _, outcome in done if isinstance(outcome, Skipped)),
    )
