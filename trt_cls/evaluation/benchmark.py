"""The speed of each stage from image files to predictions, the bottleneck, and the pipeline's share of its speed.

The stages themselves are in `stages.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trt_cls.data.folder import Sample
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.evaluation.answers import Executor, open_kernel
from trt_cls.evaluation.stages import Bandwidth, Job, Stage, bandwidth, device_stages, host_stages
from trt_cls.preprocessing import cpu

Wanted = Literal["all", "decode", "preprocess", "engine"]

BATCHES = 8
"""Minimum number of batches of a pass over the images."""
ROUNDS = 5
MIN_BATCHES = 3
"""Minimum number of batches for the percentiles."""


@dataclass(frozen=True)
class Figures:
    """The speed of one stage."""

    stage: str
    images_per_second: float
    """Throughput: batch after batch."""
    p50_ms: float
    """Latency of a single batch."""
    p99_ms: float
    batches: int
    """Number of batches behind the percentiles."""
    limits: bool
    """See `Stage.limits`."""


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark."""

    backend: str
    precision: str
    executor: str
    """What preprocessed the images: cuda, native or pillow."""
    batch_size: int
    workers: int
    stages: tuple[Figures, ...]
    kernel: Bandwidth | None
    """Bandwidth of the preprocessing kernel; None: the CPU preprocesses."""
    share_of_limit: float | None
    """The speed of the pipeline as a share of its slowest stage's; None: not all stages were measured."""

    @property
    def limit(self) -> Figures | None:
        """The slowest of the stages that run in parallel; None: not all stages were measured."""
        if self.share_of_limit is None:
            return None
        return min((stage for stage in self.stages if stage.limits), key=lambda stage: stage.images_per_second)

    def to_dict(self) -> dict[str, Any]:
        """The content of benchmark.json."""
        data = asdict(self)
        data["limit"] = self.limit.stage if self.limit else None
        data["kernel"] = {**asdict(self.kernel), "share": self.kernel.share} if self.kernel else None
        return data


def benchmark(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    wanted: Wanted = "all",
    executor: Executor = "auto",
    seconds: float = 2.0,
) -> Benchmark:
    """Measures the stages that `wanted` names, each for about `seconds` of throughput and `seconds` of latency.

    Raises:
        DataError: none of `samples` can be decoded.
        DeviceError, EngineError, MissingDependency, RequestError: as `answers`.
    """
    if isinstance(engine, TensorRtEngine):
        batch_size = min(batch_size, engine.largest)
    samples = list(samples) * -(-BATCHES * batch_size // len(samples))
    job = Job(engine, samples, batch_size, workers)
    with ExitStack() as stack:
        kernel = open_kernel(engine, executor)
        share = None
        if kernel is None or not isinstance(engine, TensorRtEngine):
            stages = stack.enter_context(host_stages(job, executor))
        else:
            stack.enter_context(closing(kernel))
            stages = stack.enter_context(device_stages(job, engine, kernel))
            if wanted in ("all", "preprocess"):
                share = bandwidth(kernel, engine.contract.preprocessing, job.first_batches()[0])
        chosen = [stage for stage in stages if wanted in ("all", stage.name)]
        rounds = measured_rounds(chosen, seconds / ROUNDS)
        figures = tuple(_figures(stage, rounds, seconds) for stage in chosen)
    prepared_by = cpu.executor() if kernel is None else "cuda"
    reached = share_of_slowest(chosen, rounds) if wanted == "all" else None
    precision = engine.contract.precision
    return Benchmark(engine.backend, precision, prepared_by, batch_size, workers, figures, share, reached)


def measured_rounds(stages: Sequence[Stage], seconds: float) -> list[dict[str, float]]:
    """Images/s of each stage in each round; the stages take turns, so that a drift of the machine affects all."""
    for stage in stages:
        stage.one()  # warms up
    return [{stage.name: _speed(stage, seconds) for stage in stages} for _ in range(ROUNDS)]


def share_of_slowest(stages: Sequence[Stage], rounds: Sequence[dict[str, float]]) -> float:
    """The speed of the pipeline as a share of the slowest stage's in the same round; median of the rounds."""
    limiting = [stage.name for stage in stages if stage.limits]
    return float(np.median([speeds["all"] / min(speeds[name] for name in limiting) for speeds in rounds]))


def _speed(stage: Stage, seconds: float) -> float:
    images, start = 0, time.perf_counter()
    while images == 0 or time.perf_counter() - start < seconds:
        images += stage.through()
    return images / (time.perf_counter() - start)


def _figures(stage: Stage, rounds: Sequence[dict[str, float]], seconds: float) -> Figures:
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < MIN_BATCHES or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        stage.one()
        times.append((time.perf_counter() - before) * 1e3)
    p50, p99 = (float(value) for value in np.percentile(times, [50, 99]))
    speed = float(np.median([speeds[stage.name] for speeds in rounds]))
    return Figures(stage.name, speed, p50, p99, len(times), stage.limits)
