"""What --calibrate, --coverage and --reject-rate do to a trained network, in each precision.

Every second image of each class of --images goes to the exports, the others are measured on: expected calibration error
with and without the temperature, labels that it changed (ties within 1 ulp left out), coverage of the sets, and AUROC
against the foreign pictures of --unknown. Intervals are 95 %: of the errors and of AUROC from drawing images again with
replacement, of the coverage the exact beta-binomial law of its number of measured images.
results/calibration.csv has a row for each precision, of a resnet10 at 32 pixels that 14 epochs on 2,250 images of
CIFAR-10 made too sure of itself. On a network that hardly was (error 0.052, temperature 1.23) the change was -0.008,
with an interval of -0.035 to 0.029.
Usage: python benchmarks/calibration.py CHECKPOINT --images TEST --calibration TRAIN --unknown FOREIGN
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
from _results import about, write
from scipy.stats import betabinom

from trt_cls.artefacts.model_file import read_contract
from trt_cls.contract import Precision
from trt_cls.data.folder import Sample, image_folder, list_images
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import Predictions, predict
from trt_cls.evaluation.metrics import calibration_error
from trt_cls.evaluation.prediction_sets import auroc, in_sets, named
from trt_cls.export.confidence import Rules, validation_halves
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
ROUNDS = 2000
RULES = Rules(coverage=0.9, reject_rate=0.05)


def halves(root: Path, folder: Path, classes: tuple[str, ...]) -> tuple[Path, list[Sample]]:
    """A folder of links to every second image of each class, and the other images."""
    seen = dict.fromkeys(classes, 0)
    others = []
    for sample in image_folder(root, classes).samples:
        name = classes[sample.label]
        seen[name] += 1
        if seen[name] % 2:
            others.append(sample)
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / sample.path.name).symlink_to(sample.path.absolute())
    return folder, others


def answers(model: Path, samples: list[Sample]) -> Predictions:
    with closing(open_engine(model, "cpu")) as engine:
        return predict(engine, samples, batch_size=64, workers=1)


def edges(values: list[float]) -> tuple[str, str]:
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{low:.4f}", f"{high:.4f}"


def row_of(plain: Predictions, made: Predictions, foreign: Predictions, model: Path, measured_on: int) -> dict:
    contract, labels = read_contract(model), made.labels
    random, errors, areas = np.random.default_rng(0), [], []
    for _ in range(ROUNDS):
        chosen = random.integers(len(labels), size=len(labels))
        others = random.integers(len(foreign.samples), size=len(foreign.samples))
        pair = [calibration_error(side.probabilities[chosen], labels[chosen]) for side in (plain, made)]
        errors.append(pair[1] - pair[0])
        areas.append(auroc(made.probabilities[chosen], foreign.probabilities[others]))
    before, after = (calibration_error(side.probabilities, labels) for side in (plain, made))
    first, second = np.sort(plain.probabilities, axis=1)[:, :-3:-1].T
    tied = first - second <= np.spacing(first)
    changed = plain.probabilities.argmax(axis=1) != made.probabilities.argmax(axis=1)
    assert contract.conformal is not None
    sets = in_sets(made.probabilities, contract.conformal)
    rank = math.ceil(Fraction(str(RULES.coverage)) * (measured_on + 1))
    law = betabinom(len(labels), rank, measured_on + 1 - rank)
    return {
        "precision": contract.precision,
        "top1": f"{(made.probabilities.argmax(axis=1) == labels).mean():.4f}",
        "temperature": f"{contract.temperature:.4f}",
        "ece_before": f"{before:.4f}",
        "ece_after": f"{after:.4f}",
        "change": f"{after - before:.4f}",
        **dict(zip(("change_low_95", "change_high_95"), edges(errors), strict=True)),
        "labels_changed": int((changed & ~tied).sum()),
        "ties": int(tied.sum()),
        "coverage_target": RULES.coverage,
        "coverage": f"{sets[np.arange(len(labels)), labels].mean():.4f}",
        "coverage_band_95": " to ".join(f"{edge / len(labels):.4f}" for edge in law.interval(0.95)),
        "mean_set_size": f"{sets.sum(axis=1).mean():.2f}",
        "unknown_target": RULES.reject_rate,
        "unknown": f"{(~named(made.probabilities, contract).any(axis=1)).mean():.4f}",
        "unknown_of_foreign": f"{(~named(foreign.probabilities, contract).any(axis=1)).mean():.4f}",
        "auroc": f"{auroc(made.probabilities, foreign.probabilities):.4f}",
        **dict(zip(("auroc_low_95", "auroc_high_95"), edges(areas), strict=True)),
        "images": len(labels),
        "foreign_images": len(foreign.samples),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--images", type=Path, help="labeled folder that the network did not learn from")
    parser.add_argument("--calibration", type=Path, help="folder to measure INT8's ranges on")
    parser.add_argument("--unknown", type=Path, help="pictures of no class")
    given = parser.parse_args()
    if not (given.checkpoint and given.images and given.calibration and given.unknown):
        print("calibration: not run, it needs a trained network, --images, --calibration and --unknown")
        return 1
    rows, classes = [], read_contract(given.checkpoint).classes
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        validation, test = halves(given.images, root / "validation", classes)
        measured_on = len(validation_halves(validation, None, classes).second)
        foreign = [Sample(path) for path in list_images(given.unknown)]
        for precision in PRECISIONS:
            asked = {"precision": precision, "builder": "none", "images": validation, "say": print}
            if precision == "int8":
                asked["int8"] = Int8(given.calibration)
            plain, made = root / f"{precision}-plain.onnx", root / f"{precision}.onnx"
            export(given.checkpoint, plain, **asked)
            export(given.checkpoint, made, calibrate=True, rules=RULES, **asked)
            found = row_of(answers(plain, test), answers(made, test), answers(made, foreign), made, measured_on)
            rows.append({**found, **about(("onnxruntime", "torch"))})
    write("calibration", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
