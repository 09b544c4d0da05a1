"""How fast `evaluate` on an ONNX file is, against its two stages alone and against a plain loop over the images.

Each round measures all four in turn, so that a machine whose speed drifts does so for all of them; medians of the
rounds are written to results/evaluate_pipeline.csv. Usage: make bench IMAGES=DIR
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from trt_cls import models
from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.export.onnx_file import onnx_from_module, write_onnx
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import preprocess
from trt_cls.spec import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluate_pipeline.csv"

SPEC = ROOT / "specs" / "photos_resnet50.txt"
BATCH, WORKERS, ROUNDS = 16, 2, 5


def write_model(folder: ImageFolder, path: Path) -> Contract:
    """A resnet18 at 224×224 with the weights it begins with: its speed is that of a trained one."""
    experiment = load(SPEC, overrides=["model_config.n_layers=18"], paths=False)
    contract = Contract(experiment.model_config, preprocessing_from_spec(experiment, "eval"), folder.classes)
    write_onnx(onnx_from_module(models.build(contract.model, len(contract.classes)), contract), path)
    return contract


def images_per_second(work: Callable[[], None], images: int) -> float:
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def measure(folder: ImageFolder) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "resnet18.onnx"
        preprocessing = write_model(folder, path).preprocessing
        engine = open_engine(path, "cpu")
        batches = [b.images for b in stream(folder.samples, preprocessing, batch_size=BATCH, workers=WORKERS)]

        def plain_loop() -> None:
            for sample in folder.samples:
                preprocess(decode(sample.path, preprocessing.channels), preprocessing)

        def images_alone() -> None:
            for _ in stream(folder.samples, preprocessing, batch_size=BATCH, workers=WORKERS):
                pass

        def session_alone() -> None:
            for batch in batches:
                engine.infer(batch)

        def whole() -> None:
            evaluate(engine, folder, batch_size=BATCH, workers=WORKERS, top_k=5)

        stages = {
            "plain_loop": plain_loop,
            "images_alone": images_alone,
            "session_alone": session_alone,
            "evaluate": whole,
        }
        rounds = [
            {name: images_per_second(work, len(folder.samples)) for name, work in stages.items()}
            for _ in range(ROUNDS + 1)
        ][1:]  # the first one warms up
        engine.close()
    figures = {name: statistics.median(r[name] for r in rounds) for name in stages}
    figures["images_alone/plain_loop"] = statistics.median(r["images_alone"] / r["plain_loop"] for r in rounds)
    figures["evaluate/slower_stage"] = statistics.median(
        r["evaluate"] / min(r["images_alone"], r["session_alone"]) for r in rounds
    )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with one sub-folder of photographs per class"
    )
    images = parser.parse_args().images
    folder = image_folder(images)
    figures = measure(folder)
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "pillow", "numpy")),
        "images": len(folder.samples),
        "rounds": ROUNDS,
    }
    rows = [{"figure": name, "median": f"{np.round(value, 3):g}", **about} for name, value in figures.items()]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['figure']:26} {row['median']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
