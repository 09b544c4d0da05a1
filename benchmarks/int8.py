"""Accuracy and speed of INT8 and FP16 on this CPU, with ONNX Runtime and with OpenVINO.

Each checkpoint is exported in float32, FP16 and INT8, calibrated on --calibration, and measured on --images; beside it
the checkpoint of its further training with extensions.quantization, where --trained has one of the same network, and
the file of `export --auto LOSS` with --auto. The files take turns on the same batch, so that a machine whose speed
drifts does so for all of them; medians of the rounds go to results/int8.csv, which keeps its rows of other networks.
Usage: python benchmarks/int8.py --images TEST --calibration TRAIN [--auto 1] CHECKPOINT... --trained ...
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
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _results import RESULTS, network_name, write

from trt_cls.artefacts.model_file import read_contract
from trt_cls.contract import Precision
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.engines import open_engine
from trt_cls.engines.backends import Provider
from trt_cls.engines.engine import Engine
from trt_cls.errors import ExportError
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.evaluation.metrics import mcnemar
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TRAINED = "int8, trained"
FIGURES = (
    "model", "precision", "engine", "top1", "points_lost", "mcnemar_p", "share_of_8_bits", "images_per_second",
    "times_fp32_onnxruntime",
)  # fmt: skip
BATCH, ROUNDS, WARM_UP = 32, 41, 3


def measure(
    checkpoint: Path, trained: Path | None, folder: ImageFolder, int8: Int8, loss: float | None
) -> list[dict[str, Any]]:
    """A row for each precision and engine; an INT8 file that the export refuses has no figures."""
    providers: list[Provider] = ["cpu", *(["openvino"] if find_spec("openvino") else [])]  # type: ignore[list-item]
    sources: dict[str, tuple[Path, Precision, Int8]] = {name: (checkpoint, name, int8) for name in PRECISIONS}
    if trained:
        sources[TRAINED] = trained, "int8", Int8()
    if loss is not None:
        sources[f"auto {loss:g}"] = checkpoint, "int8", replace(int8, max_loss=loss)
    model = read_contract(checkpoint).model
    name = f"{network_name(model)} {'×'.join(str(size) for size in model.input_shape)}"
    rows = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        engines: dict[tuple[str, Provider], Engine] = {}
        for label, (source, precision, asked) in sources.items():
            path = Path(temporary) / f"{len(engines)}.onnx"
            try:
                export(source, path, precision=precision, int8=asked, images=folder.root, builder="none", say=print)
            except ExportError as error:
                print(error)
                rows.append({"model": name, "precision": label, "engine": "refused by the export"})
                continue
            for provider in providers:
                engines[label, provider] = stack.enter_context(closing(open_engine(path, provider)))
        right = {key: hits(engine, folder) for key, engine in engines.items()}
        speeds = images_per_second(engines, folder)
    exact = right["fp32", "cpu"]
    return rows + [
        {
            "model": name,
            "precision": label,
            "engine": engine.backend,
            "top1": f"{100 * right[label, provider].mean():.2f}",
            "points_lost": f"{100 * (exact.mean() - right[label, provider].mean()):.2f}",
            "mcnemar_p": f"{p_value(exact, right[label, provider]):.3g}",
            "share_of_8_bits": f"{100 * (engine.contract.eight_bits or 0):.1f}",
            "images_per_second": f"{speeds[label, provider]:.4g}",
            "times_fp32_onnxruntime": f"{speeds[label, provider] / speeds['fp32', 'cpu']:.3g}",
        }
        for (label, provider), engine in engines.items()
    ]


def hits(engine: Engine, folder: ImageFolder) -> Any:
    """Of each image of the folder, whether its likeliest class is the right one."""
    predictions = evaluate(engine, folder, batch_size=BATCH, workers=2, top_k=1).predictions
    return predictions.probabilities.argmax(1) == np.array([sample.label for sample in predictions.samples])


def p_value(exact: Any, other: Any) -> float:
    return mcnemar(int((exact & ~other).sum()), int((other & ~exact).sum()))


def images_per_second(engines: dict[tuple[str, Provider], Engine], folder: ImageFolder) -> dict[Any, float]:
    """Of the network alone, on one batch; medians."""
    preprocessing = next(iter(engines.values())).contract.preprocessing
    (batch,) = stream(folder.samples[:BATCH], preprocessing, batch_size=BATCH, workers=0)
    seconds: dict[Any, list[float]] = {key: [] for key in engines}
    for _ in range(WARM_UP + ROUNDS):
        for key, engine in engines.items():
            start = time.perf_counter()
            engine.infer(batch.images)
            seconds[key].append(time.perf_counter() - start)
    return {key: len(batch.samples) / statistics.median(taken[WARM_UP:]) for key, taken in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT")
    parser.add_argument("--trained", type=Path, nargs="*", default=[], metavar="CHECKPOINT", help="trained for INT8")
    parser.add_argument("--images", type=Path, required=True, help="labeled folder to measure on")
    parser.add_argument("--calibration", type=Path, help="folder to calibrate on, other images")
    parser.add_argument("--auto", type=float, metavar="LOSS", help="a file of export --auto LOSS, too")
    given = parser.parse_args()
    if not given.checkpoints or not given.calibration:
        print("int8: not run, it needs trained networks and --calibration: accuracies of others say nothing")
        return 1
    packages = ("onnxruntime", "openvino") if find_spec("openvino") else ("onnxruntime",)
    about = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "batch": BATCH,
        "rounds": ROUNDS,
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }
    trained = {read_contract(path).model: path for path in given.trained}
    path, rows = RESULTS / "int8.csv", []
    for checkpoint in given.checkpoints:
        contract = read_contract(checkpoint)
        folder = image_folder(given.images, contract.classes)
        found = measure(checkpoint, trained.get(contract.model), folder, Int8(given.calibration), given.auto)
        rows += [{**dict.fromkeys(FIGURES, ""), **row, "images": len(folder.samples), **about} for row in found]
    known = {row["model"] for row in rows}
    kept = [row for row in csv.DictReader(path.open()) if row["model"] not in known] if path.exists() else []
    write("int8", [{**dict.fromkeys(rows[0], ""), **row} for row in (*kept, *rows)])
    return 0


def processor() -> str:
    """What Linux calls it, and whether it multiplies bytes in one instruction."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return (names[0] if names else platform.machine()) + (" with AVX512-VNNI" if "avx512_vnni" in text else "")


if __name__ == "__main__":
    sys.exit(main())
