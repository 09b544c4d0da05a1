"""Results of a multi-label evaluation: results.json, predictions.csv and .npz, report.html, a table as text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trt_cls.data.labels import SEPARATOR
from trt_cls.evaluation.label_evaluation import LabelEvaluation
from trt_cls.evaluation.report.label_page import label_page
from trt_cls.files import atomic, write_csv, write_text
from trt_cls.text import printable


def label_results(evaluation: LabelEvaluation, model: Path) -> dict[str, Any]:
    """The content of results.json: numbers, names and lists only."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    classes = evaluation.contract.classes
    return {
        "model": str(model),
        "backend": evaluation.backend,
        "precision": evaluation.contract.precision,
        "task": "multi",
        "num_images": len(predictions.samples),
        "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in predictions.skipped],
        "mAP": metrics.map,
        "micro_f1": metrics.micro_f1,
        "macro_f1": metrics.macro_f1,
        "exact_match": metrics.exact_match,
        "hamming_loss": metrics.hamming_loss,
        "loss": metrics.loss,
        "classes": list(classes),
        "per_class": {name: asdict(scores) for name, scores in zip(classes, metrics.per_class, strict=True)},
        "images_per_second": evaluation.images_per_second,
        "seconds": asdict(predictions.seconds),
    }


def write_label_evaluation(evaluation: LabelEvaluation, model: Path, folder: Path) -> tuple[Path, ...]:
    """Writes results.json, predictions.csv (path,truth,predicted), predictions.npz and report.html."""
    results, table, arrays, report = (
        folder / name for name in ("results.json", "predictions.csv", "predictions.npz", "report.html")
    )
    predictions = evaluation.predictions
    write_text(results, json.dumps(label_results(evaluation, model), indent=2, allow_nan=False) + "\n")
    rows = (
        (sample.path, *(SEPARATOR.join(evaluation.named(flags)) for flags in both))
        for sample, *both in zip(predictions.samples, evaluation.truth, evaluation.given, strict=True)
    )
    write_csv(table, [("path", "truth", "predicted"), *rows])
    paths = np.array([str(sample.path) for sample in predictions.samples])
    with atomic(arrays) as beside, beside.open("wb") as file:
        truth = evaluation.truth.astype(np.uint8)
        np.savez_compressed(file, paths=paths, truth=truth, probabilities=predictions.probabilities)
    write_text(report, label_page(evaluation, model))
    return results, table, arrays, report


def label_table(evaluation: LabelEvaluation) -> str:
    """The metrics and the per-class report, for a terminal."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    figures = [
        ("images", f"{len(predictions.samples)}, {len(predictions.skipped)} skipped"),
        ("mAP", f"{metrics.map:.4f}"),
        ("micro F1", f"{metrics.micro_f1:.4f}"),
        ("macro F1", f"{metrics.macro_f1:.4f}"),
        ("exact match", f"{metrics.exact_match:.4f}"),
        ("Hamming loss", f"{metrics.hamming_loss:.4f}"),
        ("loss", f"{metrics.loss:.4f}"),
        ("images/s", f"{evaluation.images_per_second:.0f} ({evaluation.backend}, {evaluation.contract.precision})"),
    ]
    if warning := evaluation.warning:
        figures.append(("warning", printable(warning)))
    names = [printable(name) for name in evaluation.contract.classes]
    width = max(len(name) for name in names)
    heads = ("AP", "precision", "recall", "f1-score", "support", "threshold")
    lines = [f"{'':>{width}} " + "".join(f" {name:>9}" for name in heads)]
    for name, scores in zip(names, metrics.per_class, strict=True):
        average = "none" if scores.ap is None else f"{scores.ap:.4f}"
        lines.append(
            f"{name:>{width}}  {average:>9} {scores.precision:9.2f} {scores.recall:9.2f} {scores.f1:9.2f} "
            f"{scores.support:9} {scores.threshold:9.4f}"
        )
    return "\n".join(f"{name:18} {value}" for name, value in figures) + "\n\nLabels\n" + "\n".join(lines)
