"""The four scenarios of MLPerf's LoadGen on one model, from image files and from tensors, beside our own benchmark.

Beside LoadGen's percentiles stand p50 and p99 of `trt-cls benchmark`, for batches of the scenario's queries: 1 image of
single-stream and server, 8 of multi-stream, a full batch of offline; and its speed, batch after batch. Not MLPerf
results. The load average is the system's, of the minute before the row was written, this script included. Rows go to
results/loadgen.csv; those that a call does not run stay as they were, or say so.
Usage: python benchmarks/loadgen.py MODEL --images DIR [--seconds 10] [--target-qps 20] [--target-latency 100]
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from _results import RESULTS, about, write

from trt_cls.data.folder import Sample, evenly_spread, list_images
from trt_cls.engines import open_engine
from trt_cls.errors import TrtClsError
from trt_cls.evaluation.benchmark import benchmark
from trt_cls.evaluation.loadgen import MOST_IMAGES, SAMPLES_PER_QUERY, SCENARIOS, Load, Scenario, drive, opened_queries

BATCH, WORKERS = 32, 2
OWN: dict[Scenario, int] = {"single-stream": 1, "multi-stream": SAMPLES_PER_QUERY, "offline": BATCH, "server": 1}
"""Batch of our own benchmark."""
SOURCES = ("tensors", "files")
FIGURES = (
    "engine", "verdict", "images_per_second", "queries", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms",
    "own_batch", "own_images_per_second", "own_p50_ms", "own_p99_ms", "settings", "load_average",
)  # fmt: skip


def measure(engine: Any, samples: list[Sample], source: str, load: Load) -> dict[str, Any]:
    how = {"batch_size": BATCH, "workers": WORKERS, "executor": "auto"}
    with (
        opened_queries(engine, samples, tensors=source == "tensors", **how) as queries,
        tempfile.TemporaryDirectory() as logs,
    ):
        judged = drive(queries.run, len(queries.samples), queries.batch_size, load, Path(logs))
    size = OWN[load.scenario]
    wanted: Any = "engine" if source == "tensors" else "all"
    own = benchmark(engine, samples, **{**how, "batch_size": size}, wanted=wanted, seconds=3.0).stages[-1]
    return {
        "verdict": "VALID" if judged.valid else f"INVALID: {judged.reason}",
        "images_per_second": f"{judged.images_per_second:.1f}",
        "queries": judged.queries,
        **{f"{name}_ms": f"{value:.2f}" for name, value in judged.percentiles_ms.items()},
        "own_batch": size,
        "own_images_per_second": f"{own.images_per_second:.1f}",
        "own_p50_ms": f"{own.p50_ms:.2f}",
        "own_p99_ms": f"{own.p99_ms:.2f}",
        "settings": "; ".join(judged.in_words),
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--seconds", type=float, default=10.0, help="shortest run")
    parser.add_argument("--target-qps", type=float, default=20.0, help="of server")
    parser.add_argument("--target-latency", type=float, default=100.0, help="of server, in ms")
    parser.add_argument("--sources", nargs="*", default=SOURCES, choices=SOURCES)
    parser.add_argument("--scenarios", nargs="*", default=SCENARIOS, choices=SCENARIOS)
    given = parser.parse_args()
    samples = [Sample(path) for path in evenly_spread(list_images(given.images), MOST_IMAGES)]
    label = {"model": given.model.name, "what": "not an MLPerf result"}
    machine = about(("mlcommons-loadgen", "onnxruntime", "openvino", "numpy"))
    rows = {
        (scenario, source): {**label, "scenario": scenario, "source": source, **dict.fromkeys(FIGURES, ""), **machine}
        | {"verdict": "not run"}
        for source in SOURCES
        for scenario in SCENARIOS
    }
    path = RESULTS / "loadgen.csv"
    for row in csv.DictReader(path.open()) if path.exists() else ():
        rows[row["scenario"], row["source"]] |= row
    try:
        with closing(open_engine(given.model)) as engine:
            for scenario, source in ((one, other) for other in given.sources for one in given.scenarios):
                rate = given.target_qps if scenario == "server" else None
                load = Load(scenario, given.seconds, rate, given.target_latency)
                rows[scenario, source] |= {
                    "engine": engine.backend,
                    **measure(engine, samples, source, load),
                    **machine,
                }
                write("loadgen", list(rows.values()))
    except TrtClsError as error:
        print(f"loadgen: not run, {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
