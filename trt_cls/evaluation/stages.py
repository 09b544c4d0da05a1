"""The stages between image files and predictions, each as work that can be timed alone; the kernel's bandwidth.

Does not know: clocks of the host.
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
from trt_cls.data.stream import decoded_batches, stream
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.engines.tensorrt.pipeline import LANES, Lane
from trt_cls.evaluation.evaluate import predict
from trt_cls.evaluation.inference import Executor, nothing_decoded
from trt_cls.preprocessing import cpu
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.packing import bytes_needed
from trt_cls.preprocessing.pillow import Floats, Pixels

KEPT = 4
"""Decoded batches held in memory as the input of the stages after the decoder."""


@dataclass(frozen=True)
class Stage:
    """One stage; the stage `all` is the pipeline from files to predictions."""

    name: str
    work: Callable[[Any], int]
    """Processes a sequence of batches (or of samples), overlapping as far as possible; returns the number of images."""
    items: Sequence[Any]
    """The input of a run for throughput."""
    batch: Sequence[Any]
    """The input of a run for latency: one batch."""
    limits: bool
    """Whether it runs in parallel to the others, so that the pipeline can't be faster."""

    def through(self, batches: int) -> int:
        """Processes up to so many batches; returns the number of images."""
        return self.work(self.items[: batches * len(self.batch)])

    def one(self) -> int:
        """Processes a single batch."""
        return self.work(self.batch)


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
            DataError: no image can be decoded.
        """
        batches = list(self._decoded(self.samples[: KEPT * self.batch_size]))
        images = [batch.images for batch in batches if batch.images]
        if not images:
            raise nothing_decoded([image for batch in batches for image in batch.skipped], "name a folder")
        return images

    def decode(self, samples: Sequence[Sample]) -> int:
        """Decodes the images as the pipeline on the GPU does."""
        return sum(len(batch.samples) for batch in self._decoded(samples))

    def of_files(self, name: str, work: Callable[[Sequence[Sample]], int], *, limits: bool) -> Stage:
        """A stage that begins with image files."""
        return Stage(name, work, self.samples, self.samples[: self.batch_size], limits)

    def pipeline(self, executor: Executor) -> Stage:
        """The stage `all`."""

        def work(samples: Sequence[Sample]) -> int:
            size, workers = self.batch_size, self.workers
            return len(predict(self.engine, samples, batch_size=size, workers=workers, executor=executor).samples)

        return self.of_files("all", work, limits=False)

    def _decoded(self, samples: Sequence[Sample]) -> Iterator[Any]:
        preprocessing = self.engine.contract.preprocessing
        return decoded_batches(samples, preprocessing, batch_size=self.batch_size, workers=self.workers)


@contextmanager
def host_stages(job: Job, executor: Executor) -> Iterator[list[Stage]]:
    """The stages if the CPU preprocesses: the same threads decode and resize, so these two share their time."""
    images, preprocessing = job.first_batches(), job.engine.contract.preprocessing
    with ThreadPoolExecutor(max(job.workers, 1)) as pool:

        def prepare(batches: Sequence[Sequence[Pixels]]) -> int:
            for batch in batches:
                tensor = np.empty((len(batch), *preprocessing.input_shape), np.float32)
                list(pool.map(lambda pixels, out: cpu.preprocess(pixels, preprocessing, out), batch, tensor))
            return sum(map(len, batches))

        def decode_and_prepare(samples: Sequence[Sample]) -> int:
            batches = stream(samples, preprocessing, batch_size=job.batch_size, workers=job.workers)
            return sum(len(batch.samples) for batch in batches)

        def infer(batches: Sequence[Floats]) -> int:
            return sum(len(job.engine.infer(batch)) for batch in batches)

        tensors = [np.stack([cpu.preprocess(pixels, preprocessing) for pixels in batch]) for batch in images]
        yield [
            job.of_files("decode", job.decode, limits=False),
            Stage("preprocess", prepare, images, images[:1], limits=False),
            job.of_files("decode+preprocess", decode_and_prepare, limits=True),
            Stage("engine", infer, tensors, tensors[:1], limits=True),
            job.pipeline(executor),
        ]


@contextmanager
def device_stages(job: Job, engine: TensorRtEngine, kernel: CudaPreprocessing) -> Iterator[list[Stage]]:
    """The stages if the GPU preprocesses: threads decode in parallel, and two batches are on the GPU at once."""
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

        def through(batches: Sequence[tuple[Pixels, ...]], *, prepare: bool = False, run: bool = False) -> int:
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

        # fills the lanes, so that the network alone has images to run on
        through([images[0]] * LANES, prepare=True, run=True)
        yield [
            job.of_files("decode", job.decode, limits=True),
            Stage("preprocess", partial(through, prepare=True), images, images[:1], limits=True),
            Stage("engine", partial(through, run=True), [images[0]] * len(images), images[:1], limits=True),
            job.pipeline("cuda"),
        ]


REPEATS, ROUNDS = 20, 5
COPIED = 256 << 20
"""Bytes of the copy that measures the device's bandwidth: more than any cache holds."""
GIGA = 1e9


@dataclass(frozen=True)
class Bandwidth:
    """GB/s of the preprocessing kernel, against a copy."""

    kernel: float
    """The bytes that must be read and written once, divided by the time of a launch."""
    copy: float
    """A copy within the GPU's memory, bytes read plus bytes written."""
    launch_ms: float

    @property
    def share(self) -> float:
        """Share of the copy's bandwidth, 0 to 1."""
        return self.kernel / self.copy


def bandwidth(kernel: CudaPreprocessing, preprocessing: Preprocessing, images: Sequence[Pixels]) -> Bandwidth:
    """Bandwidth on one batch that is already on the GPU; medians, kernel and copy in turn.

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
    """Mean of REPEATS runs, by the GPU's clock."""
    start, end = cuda.Event(), cuda.Event()
    start.record(stream)
    for _ in range(REPEATS):
        work()
    end.record(stream)
    end.synchronize()
    return float(end.time_since(start)) / 1e3 / REPEATS


GENERATED, GENERATED_SIZE, QUALITY = 64, (500, 375), 90
"""Number, size (common for photographs on the web) and JPEG quality of generated pictures."""


def write_pictures(folder: Path) -> list[Path]:
    """Writes JPEG files that take a decoder about as long as photographs of their size: smooth shapes with noise."""
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
