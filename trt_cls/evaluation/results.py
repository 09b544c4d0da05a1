"""The files that `evaluate` and `infer` leave behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_cls.evaluation.evaluate import Evaluation, Predictions
from trt_cls.files import atomic, write_text


def results_dict(evaluation: Evaluation, model: Path) -> dict[str, Any]:
    """The content of results.json: numbers, names and lists only."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    classes = evaluation.contract.classes
    return {
        "model": str(model),
        "backend": evaluation.backend,
        "precision": evaluation.contract.precision,
        "num_images": len(predictions.samples),
        "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in predictions.skipped],
        "top_k": evaluation.top_k,
        "top_1_accuracy": metrics.top_1_accuracy,
        "top_k_accuracy": metrics.top_k_accuracy,
        "loss": metrics.loss,
        "classes": list(classes),
        "confusion_matrix": metrics.confusion_matrix.tolist(),
        "per_class": {name: asdict(scores) for name, scores in zip(classes, metrics.per_class, strict=True)},
        "ece": metrics.ece,
        "images_per_second": evaluation.images_per_second,
        "seconds": asdict(predictions.seconds),
    }


def write_evaluation(evaluation: Evaluation, model: Path, folder: Path) -> tuple[Path, Path]:
    """Writes results.json and predictions.csv (path,label,predicted,confidence) to `folder` and returns their paths."""
    results, table = folder / "results.json", folder / "predictions.csv"
    predictions, classes = evaluation.predictions, evaluation.contract.classes
    # ASCII, because a path that is no valid UTF-8 could not be written otherwise.
    write_text(results, json.dumps(results_dict(evaluation, model), indent=2, allow_nan=False) + "\n")
    rows = (
        (path, classes[sample.label], predicted, confidence)
        for sample, (path, predicted, confidence) in zip(
            predictions.samples, labelled(predictions, classes), strict=True
        )
    )
    _write_csv(table, [("path", "label", "predicted", "confidence"), *rows])
    return results, table


def write_labels(predictions: Predictions, classes: Sequence[str], path: Path) -> None:
    """Writes path,label,confidence for each image, without a header, as TAO does."""
    _write_csv(path, labelled(predictions, classes))


def labelled(predictions: Predictions, classes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Path, likeliest class and its probability for each image."""
    best = predictions.probabilities.argmax(axis=1)
    return [
        (str(sample.path), classes[index], f"{row[index]:.6f}")
        for sample, index, row in zip(predictions.samples, best, predictions.probabilities, strict=True)
    ]


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    # surrogateescape: names of files need not be valid UTF-8, and come out as the bytes that they are
    with atomic(path) as beside, beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
