"""How fast each stage between image files and answers is, which one limits, and how much of it the whole reaches.

What a stage does stands in `stages`. What is not known here: tables for people.
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
"""A pass over the images has at least so many batches."""
ROUNDS = 5
LEAST = 3
"""Batches by themselves that are timed however long they take."""


@dataclass(frozen=True)
class Figures:
    """One stage, measured."""

    stage: str
    images_per_second: float
    """Batch after batch."""
    p50_ms: float
    """Of one batch by itself."""
    p99_ms: float
    batches: int
    """That the percentiles were taken from."""
    limits: bool


@dataclass(frozen=True)
class Benchmark:
    """What was measured, with what."""

    backend: str
    precision: str
    executor: str
    """What prepared the images: cuda, native or pillow."""
    batch_size: int
    workers: int
    stages: tuple[Figures, ...]
    kernel: Bandwidth | None
    """Of the preprocessing kernel; None where the CPU prepares."""
    share_of_limit: float | None
    """The speed of the whole as a share of that of its slowest stage alone; None where not all were measured."""

    @property
    def limit(self) -> Figures | None:
        """The slowest of the stages that work side by side; None where not all were measured."""
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
    """Measures the stages that `wanted` names, each for about `seconds` batch after batch and as long batch by batch.

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
    """Images/s of each stage, round by round, all stages in turn: a machine whose speed drifts does so for all."""
    for stage in stages:
        stage.one()  # warms up
    return [{stage.name: _speed(stage, seconds) for stage in stages} for _ in range(ROUNDS)]


def share_of_slowest(stages: Sequence[Stage], rounds: Sequence[dict[str, float]]) -> float:
    """The speed of the whole as a share of that of the slowest stage alone in the same round; median of the rounds."""
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
    while len(times) < LEAST or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        stage.one()
        times.append((time.perf_counter() - before) * 1e3)
    p50, p99 = (float(value) for value in np.percentile(times, [50, 99]))
    speed = float(np.median([speeds[stage.name] for speeds in rounds]))
    return Figures(stage.name, speed, p50, p99, len(times), stage.limits)
