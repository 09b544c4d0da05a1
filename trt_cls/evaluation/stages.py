"""The stages between image files and answers, each as work that can be done alone.

What is not known here: clocks.


How near the preprocessing kernel comes to its floor: each byte in once and each byte out once, at a copy's speed.

What is not known here: the other stages.


Pictures to measure speed on, where nobody names any.

What is not known here: what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.data.stream import decoded, stream
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.engines.tensorrt.pipeline import LANES, Lane
from trt_cls.errors import DataError
from trt_cls.evaluation.answers import Executor
from trt_cls.evaluation.evaluate import predict
from trt_cls.preprocessing import cpu
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.packing import bytes_needed
from trt_cls.preprocessing.pillow import Pixels

KEPT = 4
"""Batches that stages after the decoder take their input from, held in memory."""


@dataclass(frozen=True)
class Stage:
    """A part of the way; `all` is the whole of it."""

    name: str
    through: Callable[[], int]
    """Does many batches, overlapping as far as the stage can, and tells how many images that were."""
    one: Callable[[], object]
    """Does one batch by itself, from beginning to end."""
    limits: bool
    """Runs beside the others, so that the whole can't be faster than it."""


@dataclass(frozen=True)
class Job:
    """What is measured."""

    engine: Engine
    samples: Sequence[Sample]
    batch_size: int
    workers: int

    def first_batches(self) -> list[tuple[Pixels, ...]]:
        """Decoded images, batch by batch.

        Raises:
            DataError: none can be decoded.
        """
        batches = self.decoded(self.samples[: KEPT * self.batch_size])
        images = [batch.images for batch in batches if batch.images]
        if not images:
            raise DataError(f"none of {len(self.samples)} images can be decoded; expected image files; name a folder")
        return images

    def decoded(self, samples: Sequence[Sample]) -> Iterator[Any]:
        """Batches as the pipeline on the GPU gets them."""
        preprocessing = self.engine.contract.preprocessing
        return decoded(samples, preprocessing, batch_size=self.batch_size, workers=self.workers)


@contextmanager
def host_stages(job: Job, executor: Executor) -> Iterator[list[Stage]]:
    """Where the CPU prepares images: the same threads decode and resize, so these two share their time."""
    images, preprocessing = job.first_batches(), job.engine.contract.preprocessing
    with ThreadPoolExecutor(max(job.workers, 1)) as pool:

        def prepare(batch: Sequence[Pixels]) -> int:
            tensor = np.empty((len(batch), *preprocessing.input_shape), np.float32)
            list(pool.map(lambda pixels, out: cpu.preprocess(pixels, preprocessing, out), batch, tensor))
            return len(batch)

        def both(samples: Sequence[Sample]) -> int:
            size, workers = job.batch_size, job.workers
            return sum(len(b.samples) for b in stream(samples, preprocessing, batch_size=size, workers=workers))

        tensors = [np.stack([cpu.preprocess(pixels, preprocessing) for pixels in batch]) for batch in images]
        yield [
            _decode_stage(job, limits=False),
            Stage("preprocess", lambda: sum(map(prepare, images)), lambda: prepare(images[0]), False),
            Stage("decode+preprocess", lambda: both(job.samples), lambda: both(job.samples[: job.batch_size]), True),
            Stage(
                "engine",
                lambda: sum(len(job.engine.infer(tensor)) for tensor in tensors),
                lambda: job.engine.infer(tensors[0]),
                True,
            ),
            _whole(job, executor),
        ]


@contextmanager
def device_stages(job: Job, engine: TensorRtEngine, kernel: CudaPreprocessing) -> Iterator[list[Stage]]:
    """Where the GPU prepares images: threads decode beside it, and two batches are on it at once."""
    images = job.first_batches()
    with ExitStack() as stack:
        lanes: list[Lane] = []

        def close() -> None:
            with engine.current():
                for lane in lanes:
                    lane.close()

        stack.callback(close)
        with engine.current():
            for _ in range(LANES):
                lanes.append(Lane(engine, kernel))

        def through(prepare: bool, run: bool, batches: Sequence[tuple[Pixels, ...]]) -> int:
            with engine.current():
                for number, batch in enumerate(batches):
                    lane = lanes[number % LANES]
                    lane.finish()
                    if prepare:
                        lane.prepare(batch)
                    if run:
                        lane.run()
                for lane in lanes:
                    lane.finish()
            return sum(map(len, batches))

        # So that the network alone has images of every size to run on.
        through(True, True, [images[0]] * LANES)
        same = [images[0]] * len(images)
        yield [
            _decode_stage(job),
            Stage("preprocess", partial(through, True, False, images), partial(through, True, False, images[:1]), True),
            Stage("engine", partial(through, False, True, same), partial(through, False, True, images[:1]), True),
            _whole(job, "cuda"),
        ]


def _decode_stage(job: Job, *, limits: bool = True) -> Stage:
    def decode(samples: Sequence[Sample]) -> int:
        return sum(len(batch.samples) for batch in job.decoded(samples))

    return Stage("decode", lambda: decode(job.samples), lambda: decode(job.samples[: job.batch_size]), limits)


def _whole(job: Job, executor: Executor) -> Stage:
    def whole(samples: Sequence[Sample]) -> int:
        size, workers = job.batch_size, job.workers
        return len(predict(job.engine, samples, batch_size=size, workers=workers, executor=executor).samples)

    return Stage("all", lambda: whole(job.samples), lambda: whole(job.samples[: job.batch_size]), False)


REPEATS, ROUNDS = 20, 5
COPIED = 256 << 20
"""Bytes of the copy that counts as the device's bandwidth: more than any cache holds."""
GIGA = 1e9


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, in GB."""

    kernel: float
    """What the output needs, read once and written once, through the time of a launch."""
    copy: float
    """A copy within the GPU's memory, bytes read and bytes written."""
    launch_ms: float

    @property
    def share(self) -> float:
        """Of the copy's, 0 to 1."""
        return self.kernel / self.copy


def bandwidth(kernel: CudaPreprocessing, preprocessing: Preprocessing, images: Sequence[Pixels]) -> Bandwidth:
    """Measured on one batch that lies on the GPU already; kernel and copy in turn, medians.

    Raises:
        DeviceError: the GPU failed, or has not enough memory.
    """
    cuda = kernel.cuda
    with kernel.current():
        stream, staging = cuda.Stream(), kernel.new_staging()
        output = cuda.mem_alloc(len(images) * int(np.prod(preprocessing.input_shape)) * 4)
        source, target = cuda.mem_alloc(COPIED), cuda.mem_alloc(COPIED)
        placed = kernel.copy(images, staging, stream)
        works: tuple[Callable[[], object], ...] = (
            lambda: kernel.launch(placed, int(output), stream),
            lambda: cuda.memcpy_dtod_async(target, source, COPIED, stream),
        )
        rounds = [[_seconds(cuda, stream, work) for work in works] for _ in range(ROUNDS + 1)][1:]  # the first warms up
        stream.synchronize()
    launch, copy = np.median(np.array(rounds), axis=0)
    needed = bytes_needed([(image.shape[1], image.shape[0]) for image in images], preprocessing)
    return Bandwidth(needed / launch / GIGA, 2 * COPIED / copy / GIGA, launch * 1e3)


def _seconds(cuda: Any, stream: Any, work: Callable[[], object]) -> float:
    """Of one of REPEATS runs, by the GPU's own clock."""
    start, end = cuda.Event(), cuda.Event()
    start.record(stream)
    for _ in range(REPEATS):
        work()
    end.record(stream)
    end.synchronize()
    return float(end.time_since(start)) / 1e3 / REPEATS


GENERATED, GENERATED_SIZE, QUALITY = 64, (500, 375), 90
"""Pictures that are made where none are given: a common size of photographs on the web."""


def write_pictures(folder: Path) -> list[Path]:
    """JPEG files that take a decoder about as long as photographs of their size: smooth shapes, and noise on them."""
    random = np.random.default_rng(0)
    width, height = GENERATED_SIZE
    paths = []
    for number in range(GENERATED):
        shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(GENERATED_SIZE)
        noise = random.normal(0, 6, (height, width, 1))
        picture = Image.fromarray(np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8))
        paths.append(folder / f"{number:03}.jpg")
        picture.save(paths[-1], quality=QUALITY)
    return paths
