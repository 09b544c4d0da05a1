"""Load by MLPerf's own load generator, LoadGen: its four scenarios drive a model, and it judges the run.

LoadGen (mlcommons/inference, Apache 2.0) sends queries and measures their latencies; here they are answered, and its
log is read. What it says is no MLPerf result: those are reviewed, and follow rules on data, accuracy and duration.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from trt_cls.data.folder import Sample
from trt_cls.data.stream import decoded_batches, stream
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.engines.tensorrt.pipeline import Lane, answers_on_device
from trt_cls.errors import DataError, EngineError, require
from trt_cls.evaluation.inference import Executor, answers, nothing_decoded, open_kernel
from trt_cls.preprocessing.cuda import CudaPreprocessing

Scenario = Literal["single-stream", "multi-stream", "offline", "server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
RATED: tuple[Scenario, ...] = ("offline", "server")
"""Scenarios that have a rate; in the others a query follows the answer to the one before it."""
NOT_MLPERF = "not an MLPerf result"
SAMPLES_PER_QUERY = 8
"""Of multi-stream, by MLPerf's rules."""
GENEROUS, LONGER = 2.0, 1.5
"""LoadGen plans its queries by the speed that it is given, and a run that uses them up too early is invalid. Times the
measured speed: of queries one by one, of which it sends no more than it needs; of offline, which sends them all."""
FEWEST: dict[Scenario, int] = {"multi-stream": 662, "server": 662}
"""Fewest queries from which LoadGen computes the 99th percentile of latencies; the default of others is enough."""
MOST_IMAGES = 256
"""Images that are taken: their tensors are 150 MB at 224×224."""
PERCENTILES = ("50.00", "90.00", "95.00", "99.00", "99.90")

Predict = Callable[[Sequence[int]], Iterable[int]]
"""Answers the images of these indices, in order; yields how many more are answered."""


@dataclass(frozen=True)
class Load:
    """What LoadGen is asked for."""

    scenario: Scenario
    seconds: float
    """The shortest run; it is longer where LoadGen needs more queries for its verdict."""
    target_qps: float | None = None
    """Queries a second of server; images a second that offline plans for, None: by measurement."""
    target_latency_ms: float | None = None
    """Of server: what 99 % of latencies may be; None: LoadGen's 100."""


@dataclass(frozen=True)
class Judged:
    """A run as LoadGen judged it; its latencies are of queries, in milliseconds."""

    scenario: Scenario
    valid: bool
    reason: str
    """Why it is not valid, in LoadGen's words; else empty."""
    images_per_second: float
    queries: int
    percentiles_ms: dict[str, float]
    settings: dict[str, Any]
    """In effect, by LoadGen's names."""
    version: str
    label: str = NOT_MLPERF

    @property
    def in_words(self) -> list[str]:
        """The settings that decide on the verdict."""
        have = self.settings
        shortest = f"at least {have['min_duration_ms'] / 1e3:g} s"
        if self.scenario == "offline":
            planned = f"{have['target_qps']:g} images/s planned for"
            return [planned, shortest, f"{have['samples_per_query']} images in one query"]
        queries = f"and {have['min_query_count']} queries of {have['samples_per_query']}"
        share = f"{100 * have['target_latency_percentile']:g} % of latencies"
        if self.scenario == "server":
            bound = f"{share} at most {have['target_latency_ns'] / 1e6:g} ms"
            return [f"{have['target_qps']:g} images/s sent", f"{shortest} {queries}", bound]
        return [f"{shortest} {queries}", f"enough to know {share}"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Queries:
    """Images that can be asked for."""

    engine: Engine
    samples: Sequence[Sample]
    """All of them can be decoded."""
    tensors: Any
    """Prepared images [n,C,H,W]; None: each query reads their files."""
    batch_size: int
    workers: int
    lane: Lane | None
    """Of a GPU that preprocesses."""
    kernel: CudaPreprocessing | None

    def run(self, indices: Sequence[int]) -> Iterator[int]:
        """Answers these images, in order; yields how many more are answered.

        Raises:
            DataError: a file can no longer be decoded.
            EngineError: the run failed.
        """
        if self.tensors is not None:
            for start in range(0, len(indices), self.batch_size):
                yield len(self.engine.infer(self.tensors[list(indices[start : start + self.batch_size])]))
            return
        for batch in self._from_files([self.samples[index] for index in indices]):
            if batch.skipped:
                lost = batch.skipped[0]
                raise DataError(f"{lost.path}: {lost.reason}, as it was before; expected files that stay; start again")
            yield len(batch.samples)

    def _from_files(self, asked: Sequence[Sample]) -> Iterable[Any]:
        how = {"batch_size": self.batch_size, "workers": self.workers if len(asked) > 1 else 0}
        if self.lane is None or self.kernel is None or not isinstance(self.engine, TensorRtEngine):
            return answers(self.engine, asked, **how, executor="cpu")
        if len(asked) > self.batch_size:
            return answers_on_device(self.engine, self.kernel, asked, **how)
        return self._through(self.engine, self.lane, asked, how)

    def _through(self, engine: TensorRtEngine, lane: Lane, asked: Sequence[Sample], how: Any) -> Iterable[Any]:
        for batch in decoded_batches(asked, engine.contract.preprocessing, **how):
            with engine.current():
                lane.prepare(batch.images)
                lane.run()
                lane.finish()
            yield batch


@contextmanager
def opened_queries(
    engine: Engine, samples: Sequence[Sample], *, tensors: bool, batch_size: int, workers: int, executor: Executor
) -> Iterator[Queries]:
    """The first of `samples` that can be decoded, asked for as prepared `tensors` or as files.

    Raises:
        DataError: none can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` is "cuda", which is not possible.
    """
    if isinstance(engine, TensorRtEngine):
        batch_size = min(batch_size, engine.largest)
    batches = list(stream(samples[:MOST_IMAGES], engine.contract.preprocessing, batch_size=batch_size, workers=workers))
    kept = [sample for batch in batches for sample in batch.samples]
    if not kept:
        raise nothing_decoded([image for batch in batches for image in batch.skipped], "name a folder")
    prepared = np.concatenate([batch.images for batch in batches]) if tensors else None
    with ExitStack() as stack:
        kernel, lane = None if tensors else open_kernel(engine, executor), None
        if kernel is not None and isinstance(engine, TensorRtEngine):
            stack.enter_context(closing(kernel))
            with engine.current():
                lane = Lane(engine, kernel)
            stack.callback(_close, engine, lane)
        yield Queries(engine, kept, prepared, batch_size, workers, lane, kernel)


def import_loadgen() -> ModuleType:
    """LoadGen's module.

    Raises:
        MissingDependency: it is not installed.
    """
    return require("mlperf_loadgen", "benchmark --scenario", "mlperf", package="mlcommons-loadgen")


def drive(run: Predict, images: int, batch_size: int, load: Load, logs: Path) -> Judged:
    """Runs the scenario over `images` images, of which `run` answers those that LoadGen names; it logs into `logs`.

    Raises:
        EngineError: LoadGen wrote no results.
        MissingDependency: LoadGen is not installed.
    """
    loadgen = import_loadgen()
    settings = _settings(loadgen, load, *_speeds(run, images, batch_size))
    answering = _Answering(loadgen, run, batch_size, at_once=load.scenario != "server")
    sut = loadgen.ConstructSUT(answering.issue, answering.flush)
    qsl = loadgen.ConstructQSL(images, images, lambda indices: None, lambda indices: None)
    log = loadgen.LogSettings()
    log.log_output.outdir, log.enable_trace = str(logs), False
    # LoadGen takes settings from a file audit.config in the current folder, where it is not given another name.
    audit = str(logs / "no audit.config")

    def test() -> None:
        loadgen.StartTestWithLogSettings(sut, qsl, settings, log, audit)
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        answering.ended.set()

    _wait(answering, threading.Thread(target=test, name="trt-cls-loadgen", daemon=True))
    return _judged(load.scenario, logs / "mlperf_log_detail.txt")


def _wait(answering: _Answering, test: threading.Thread) -> None:
    """Runs `test` to its end; an error of the engine or Ctrl-C ends it at once, as far as that is possible.

    LoadGen can't be stopped. Its thread must not meet an interpreter that shuts down, so the process ends without that.
    """
    try:
        test.start()
        answering.ended.wait()
    except BaseException:
        answering.stop(None)
        atexit.register(os._exit, 130)
        raise
    if answering.error is not None:
        test.join(timeout=1)
        if test.is_alive():
            atexit.register(os._exit, getattr(answering.error, "exit_code", 1))
        raise answering.error
    test.join()


class _Answering:
    """The system under test: answers queries as they come, or, if not `at_once`, those that wait together."""

    def __init__(self, loadgen: ModuleType, run: Predict, batch_size: int, *, at_once: bool) -> None:
        self._loadgen, self._run, self._batch_size = loadgen, run, batch_size
        self._working = threading.Lock()
        self._waiting: queue.SimpleQueue[Any] | None = None if at_once else queue.SimpleQueue()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._stopped = False
        if not at_once:
            threading.Thread(target=self._serve, name="trt-cls-server", daemon=True).start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen with a query."""
        query = [(sample.id, sample.index) for sample in samples]
        if self._waiting is None:
            self._answer(query)
        else:
            for sample in query:
                self._waiting.put(sample)

    def flush(self) -> None:
        """Called by LoadGen after the last query."""
        if self._waiting is not None:
            self._waiting.put(None)

    def stop(self, error: BaseException | None) -> None:
        """Queries get empty answers from now on; returns when the engine is idle."""
        self._stopped, self.error = True, error
        with self._working:
            self.ended.set()

    def _serve(self) -> None:
        assert self._waiting is not None
        batch: list[Any] = []
        while None not in batch:
            batch = [self._waiting.get()]
            # Halves of the largest batch alone: engines prepare themselves for each size, and `_speeds` has them do so.
            size = self._batch_size
            while size > 1 + self._waiting.qsize():
                size = -(-size // 2)
            batch += [self._waiting.get() for _ in range(size - 1)]
            self._answer([sample for sample in batch if sample])

    def _answer(self, query: Sequence[tuple[int, int]]) -> None:
        done = 0
        try:
            with self._working:
                if not self._stopped:
                    for count in self._run([index for _, index in query]):
                        self._complete(query[done : done + count])
                        done += count
        except BaseException as error:  # raised again by `_wait`: LoadGen's own code can't take it
            self.stop(error)
        self._complete(query[done:])

    def _complete(self, query: Sequence[tuple[int, int]]) -> None:
        response = self._loadgen.QuerySampleResponse  # a number and no data: its latency is what counts
        self._loadgen.QuerySamplesComplete([response(identity, 0, 0) for identity, _ in query])


def _speeds(run: Predict, images: int, batch_size: int) -> tuple[float, float, float]:
    """Warms up; seconds that one image, a query of multi-stream, and each image of full batches take."""
    size = batch_size
    while size > 1:
        size = -(-size // 2)
        _seconds(run, images, size)
    sizes = 1, SAMPLES_PER_QUERY, 2 * batch_size
    one, few, many = (min(_seconds(run, images, size) for _ in "twice") for size in sizes)
    return one, few, many / (2 * batch_size)


def _seconds(run: Predict, images: int, size: int) -> float:
    start = time.perf_counter()
    assert sum(run([number % images for number in range(size)])) == size
    return time.perf_counter() - start


def _settings(loadgen: ModuleType, load: Load, one: float, few: float, each: float) -> Any:
    """LoadGen's own defaults but for the scenario, its duration and its rate."""
    settings = loadgen.TestSettings()
    name = "".join(part.capitalize() for part in load.scenario.split("-"))
    settings.scenario = getattr(loadgen.TestScenario, name)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(1000 * load.seconds))
    settings.min_query_count = FEWEST.get(load.scenario, settings.min_query_count)
    settings.single_stream_expected_latency_ns = round(1e9 * one / GENEROUS)
    settings.multi_stream_expected_latency_ns = round(1e9 * few / GENEROUS)
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    settings.offline_expected_qps = load.target_qps or LONGER / each
    settings.server_target_qps = load.target_qps or 1.0
    if load.target_latency_ms is not None:
        settings.server_target_latency_ns = round(1e6 * load.target_latency_ms)
    return settings


def _judged(scenario: Scenario, log: Path) -> Judged:
    found = _log(log)
    if "result_validity" not in found:
        raise EngineError(f"LoadGen wrote no results into {log.parent}; expected {log.name} with a verdict; try again")
    valid = found["result_validity"] == "VALID"
    kind = "per_query_latency" if scenario == "multi-stream" else "latency"
    times = {name: found[f"result_{name}_percentile_{kind}_ns"] / 1e6 for name in PERCENTILES}
    reasons = [
        found.get("result_invalid_reason", ""),
        "" if found["early_stopping_met"] else found["early_stopping_result"],
    ]
    each = found["result_mean_query_latency_ns" if scenario == "multi-stream" else "result_mean_latency_ns"] / 1e9
    speeds = {
        "single-stream": lambda: 1 / each,
        "multi-stream": lambda: SAMPLES_PER_QUERY / each,
        "offline": lambda: found["result_samples_per_second"],
        "server": lambda: found["result_completed_samples_per_sec"],
    }
    return Judged(
        scenario,
        valid,
        "" if valid else " ".join(" ".join(reasons).replace("*", "").split()),
        float(speeds[scenario]()),
        int(found["result_query_count"]),
        {f"p{float(name):g}": value for name, value in times.items()},
        {key.removeprefix("effective_"): value for key, value in found.items() if key.startswith("effective_")},
        str(found["loadgen_version"]).split()[0],
    )


def _log(path: Path) -> dict[str, Any]:
    """LoadGen's detailed log: JSON after a marker in each line."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        entry = json.loads(line.partition(" ")[2])
        found[entry["key"]] = entry["value"]
    return found


def _close(engine: TensorRtEngine, lane: Lane) -> None:
    with engine.current():
        lane.close()
