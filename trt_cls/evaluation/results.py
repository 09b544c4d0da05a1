"""The files that `evaluate` and `compare` leave behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_cls.evaluation.compare import Comparison
from trt_cls.evaluation.evaluate import Evaluation
from trt_cls.evaluation.report.comparison_page import comparison_page
from trt_cls.evaluation.report.evaluation_page import evaluation_page
from trt_cls.files import atomic, write_text
from trt_cls.text import FOREIGN, csv_row


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


def write_evaluation(evaluation: Evaluation, model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Writes results.json, predictions.csv (path,label,predicted,confidence) and report.html; returns their paths."""
    results, table, report = folder / "results.json", folder / "predictions.csv", folder / "report.html"
    predictions, classes = evaluation.predictions, evaluation.contract.classes
    # ASCII, because a path that is no valid UTF-8 could not be written otherwise.
    write_text(results, json.dumps(results_dict(evaluation, model), indent=2, allow_nan=False) + "\n")
    best = predictions.probabilities.argmax(axis=1)
    rows = (
        (sample.path, classes[sample.label], classes[index], f"{row[index]:.6f}")
        for sample, index, row in zip(predictions.samples, best, predictions.probabilities, strict=True)
    )
    _write_csv(table, [("path", "label", "predicted", "confidence"), *rows])
    write_text(report, evaluation_page(evaluation, model))
    return results, table, report


def write_comparison(comparison: Comparison, a: Path, b: Path, folder: Path) -> tuple[Path, Path]:
    """Writes changed.csv, a row for each image with another label, and comparison.html; returns their paths."""
    table, report = folder / "changed.csv", folder / "comparison.html"
    header = ("path", "label_a", "confidence_a", "label_b", "confidence_b", "truth")
    rows = (
        (c.path, c.label_a, f"{c.confidence_a:.6f}", c.label_b, f"{c.confidence_b:.6f}", c.truth or "")
        for c in comparison.changed
    )
    _write_csv(table, [header, *rows])
    write_text(report, comparison_page(comparison, a, b))
    return table, report


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with atomic(path) as beside, beside.open("w", newline="", encoding="utf-8", errors=FOREIGN) as file:
        file.writelines(csv_row(row) for row in rows)
