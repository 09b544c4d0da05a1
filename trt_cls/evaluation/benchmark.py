"""The speed of each stage from image files to predictions, the bottleneck, and the pipeline's share of its speed.

The stages themselves are in `stages.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trt_cls.data.folder import Sample
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.evaluation.inference import Executor, open_kernel
from trt_cls.evaluation.stages import Bandwidth, Job, Stage, bandwidth, device_stages, host_stages
from trt_cls.preprocessing import cpu

Wanted = Literal["all", "decode", "preprocess", "engine"]

BATCHES = 8
"""Minimum number of batches of a pass over the images."""
ROUNDS = 5


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
    rounds: int
    """Number of rounds behind the throughput."""
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
    progress: Callable[[str], None] = lambda doing: None,
) -> Benchmark:
    """Measures the stages that `wanted` names, each for `seconds` of throughput and `seconds` of latency at most.

    A stage of which one batch takes longer is run once; `progress` is called with what is measured next.

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
        costs = {}
        for stage in chosen:
            progress(f"{stage.name}, first batch")
            costs[stage.name] = _cost(stage, seconds)
        rounds = measured_rounds(chosen, costs, seconds, progress)
        figures = []
        for stage in chosen:
            progress(f"{stage.name}, latency")
            figures.append(_figures(stage, rounds, costs[stage.name], seconds))
    prepared_by = cpu.executor() if kernel is None else "cuda"
    reached = share_of_slowest(chosen, rounds) if wanted == "all" else None
    precision = engine.contract.precision
    return Benchmark(
        engine.backend, precision, prepared_by, batch_size, workers, tuple(figures), share, len(rounds), reached
    )


@dataclass(frozen=True)
class Cost:
    """What a first batch of a stage cost."""

    seconds: float
    images: int
    alone: bool
    """It used up the time: no other batch is run."""


def _cost(stage: Stage, seconds: float) -> Cost:
    """Warms up; a batch that fits into the time is run again, because the first may be far slower."""
    for _ in range(2):
        start = time.perf_counter()
        images = stage.one()
        spent = time.perf_counter() - start
        if spent > seconds / ROUNDS:
            break
    return Cost(spent, images, alone=spent > seconds > 0)


def measured_rounds(
    stages: Sequence[Stage], costs: Mapping[str, Cost], seconds: float, progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Images/s of each stage in each round; the stages take turns, so that a drift of the machine affects all.

    There are as many rounds as the slowest stage has time for, and none of a stage whose first batch took it all.
    """
    slowest = max((cost.seconds for cost in costs.values() if not cost.alone), default=0.0)
    count = max(1, min(ROUNDS, int(seconds / slowest))) if slowest and seconds else ROUNDS
    rounds = []
    for number in range(count):
        speeds = {}
        for stage in stages:
            cost = costs[stage.name]
            if not cost.alone:
                progress(f"{stage.name}, round {number + 1} of {count}")
            speeds[stage.name] = cost.images / cost.seconds if cost.alone else _speed(stage, cost, seconds / count)
        rounds.append(speeds)
    return rounds


def share_of_slowest(stages: Sequence[Stage], rounds: Sequence[dict[str, float]]) -> float:
    """The speed of the pipeline as a share of the slowest stage's in the same round; median of the rounds."""
    limiting = [stage.name for stage in stages if stage.limits]
    return float(np.median([speeds["all"] / min(speeds[name] for name in limiting) for speeds in rounds]))


def _speed(stage: Stage, cost: Cost, seconds: float) -> float:
    """Images/s over at least one batch; no run is begun that would not end in time."""
    images, start = 0, time.perf_counter()
    while images == 0 or time.perf_counter() - start + cost.seconds < seconds:
        left = seconds - (time.perf_counter() - start)
        images += stage.through(max(1, int(left / cost.seconds)))
    return images / (time.perf_counter() - start)


def _figures(stage: Stage, rounds: Sequence[dict[str, float]], cost: Cost, seconds: float) -> Figures:
    times = [cost.seconds * 1e3] if cost.alone else []
    start = time.perf_counter()
    while not times or (not cost.alone and time.perf_counter() - start + cost.seconds < seconds):
        before = time.perf_counter()
        stage.one()
        times.append((time.perf_counter() - before) * 1e3)
    p50, p99 = (float(value) for value in np.percentile(times, [50, 99]))
    speed = float(np.median([speeds[stage.name] for speeds in rounds]))
    return Figures(stage.name, speed, p50, p99, len(times), stage.limits)
