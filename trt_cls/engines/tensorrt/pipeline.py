"""From image files to probabilities with everything after the decoder on the GPU, two batches at once.

Threads decode; the kernel writes into the network's input; one batch is copied while the network runs on another.
Does not know: what the answers are for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.folder import Sample
from trt_cls.data.stream import DecodedBatch, decoded_batches
from trt_cls.engines.engine import Answered
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.pillow import Pixels

LANES = 2
"""One batch is copied to the GPU and preprocessed while the network runs on the other."""


class Lane:
    """Memory and a stream for one batch in flight, from pixels to probabilities; the engine's context must be current.

    `prepare` and `run` queue their work; `finish` waits for it, before the next batch.
    """

    def __init__(self, engine: TensorRtEngine, kernel: CudaPreprocessing) -> None:
        self._slot = engine.new_slot()
        self._kernel = kernel
        self._staging = kernel.new_staging()
        self._count = 0

    def prepare(self, images: Sequence[Pixels]) -> None:
        """Queues the preprocessing of `images`, at most the engine's largest batch."""
        self._count = len(images)
        self._kernel.enqueue(images, self._staging, int(self._slot.input), self._slot.stream)

    def run(self) -> None:
        """Queues the network on what was prepared."""
        self._slot.run(self._count)

    def finish(self) -> NDArray[np.float32]:
        """The probabilities [n,classes] of the last run, once all is done."""
        return self._slot.answers(self._count)

    def close(self) -> None:
        """Waits for running work, then frees everything."""
        self._slot.close()
        del self._slot, self._staging


def answers_on_device(
    engine: TensorRtEngine, kernel: CudaPreprocessing, samples: Sequence[Sample], *, batch_size: int, workers: int
) -> Generator[Answered]:
    """The answers for `samples` in order; a batch is never larger than the engine's largest.

    Raises:
        DeviceError, EngineError: the GPU failed, or has not enough memory.
    """
    size = min(batch_size, engine.largest)
    with ExitStack() as stack:
        batches = stack.enter_context(
            closing(decoded_batches(samples, engine.contract.preprocessing, batch_size=size, workers=workers))
        )
        lanes: list[Lane] = []
        stack.callback(_close, engine, lanes)
        with engine.current():
            for _ in range(LANES):
                lanes.append(Lane(engine, kernel))
        yield from _overlapped(engine, lanes, batches)


def _overlapped(engine: TensorRtEngine, lanes: Sequence[Lane], batches: Iterator[DecodedBatch]) -> Iterator[Answered]:
    free = deque(lanes)
    running: deque[tuple[Lane | None, DecodedBatch, float]] = deque()
    before = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - before
        ready = []
        with engine.current():  # not across a yield: the context is the thread's, and the caller has its own
            while batch.images and not free:
                ready.append(_finished(engine, free, *running.popleft()))
            lane = free.popleft() if batch.images else None
            if lane:
                lane.prepare(batch.images)
                lane.run()
        running.append((lane, batch, waited))
        yield from ready
        before = time.perf_counter()
    while running:
        with engine.current():
            last = _finished(engine, free, *running.popleft())
        yield last


def _finished(
    engine: TensorRtEngine, free: deque[Lane], lane: Lane | None, batch: DecodedBatch, waited: float
) -> Answered:
    probabilities = lane.finish() if lane else np.empty((0, len(engine.contract.classes)), np.float32)
    if lane:
        free.append(lane)
    return Answered(batch.samples, probabilities, batch.skipped, waited)


def _close(engine: TensorRtEngine, lanes: list[Lane]) -> None:
    with engine.current():
        while lanes:
            lanes.pop().close()
