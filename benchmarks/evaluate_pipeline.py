"""Speed of `evaluate` on an ONNX file, compared with its two stages alone, on processors that both stages share.

Where all cores work on both, the images a second can't pass the bound 1 / (1 / images alone + 1 / session alone).
Each round measures all three in turn, so that a machine whose speed drifts does so for all of them; medians of the
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

from trt_cls import models
from trt_cls.artefacts.onnx_file import write_onnx
from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.export.torch_to_onnx import onnx_from_module
from trt_cls.preprocessing.cpu import executor
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.preprocessing.images import simplejpeg
from trt_cls.spec import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluate_pipeline.csv"

SPEC = ROOT / "specs" / "photos_resnet50.txt"
NETWORKS = {"resnet50": [], "resnet18": ["model_config.n_layers=18"]}
"""The spec as it is, and with fewer layers; both at 224×224."""
BATCH, WORKERS, ROUNDS = 16, 2, 5


def write_model(folder: ImageFolder, overrides: list[str], path: Path) -> Contract:
    """The network with its initial weights; a trained one has the same speed."""
    experiment = load(SPEC, overrides=overrides, paths=False)
    contract = Contract(experiment.model_config, preprocessing_from_spec(experiment, "eval"), folder.classes)
    write_onnx(onnx_from_module(models.build(contract.model, len(contract.classes)), contract), path)
    return contract


def images_per_second(work: Callable[[], None], images: int) -> float:
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def measure(folder: ImageFolder, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        preprocessing = write_model(folder, overrides, path).preprocessing
        engine = open_engine(path, "cpu")
        batches = [b.images for b in stream(folder.samples, preprocessing, batch_size=BATCH, workers=WORKERS)]

        def images_alone() -> None:
            for _ in stream(folder.samples, preprocessing, batch_size=BATCH, workers=WORKERS):
                pass

        def session_alone() -> None:
            for batch in batches:
                engine.infer(batch)

        def whole() -> None:
            evaluate(engine, folder, batch_size=BATCH, workers=WORKERS, top_k=5)

        stages = {"images_alone": images_alone, "session_alone": session_alone, "evaluate": whole}
        rounds = [
            {name: images_per_second(work, len(folder.samples)) for name, work in stages.items()}
            for _ in range(ROUNDS + 1)
        ][1:]  # the first one warms up
        engine.close()
    for each in rounds:
        slower = min(each["images_alone"], each["session_alone"])
        each["bound"] = 1 / (1 / each["images_alone"] + 1 / each["session_alone"])
        each["evaluate/slower_stage"] = each["evaluate"] / slower
        each["bound/slower_stage"] = each["bound"] / slower
        each["evaluate/bound"] = each["evaluate"] / each["bound"]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with one sub-folder of photographs per class"
    )
    folder = image_folder(parser.parse_args().images)
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "executor": f"{executor()}, {'simplejpeg' if simplejpeg() else 'pillow'}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "pillow", "numpy")),
        "images": len(folder.samples),
        "rounds": ROUNDS,
    }
    rows = [
        {"network": network, "figure": name, "median": f"{value:.4g}", **about}
        for network, overrides in NETWORKS.items()
        for name, value in measure(folder, overrides).items()
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['network']:10} {row['figure']:24} {row['median']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
