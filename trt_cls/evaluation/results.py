"""Results as files and text: results.json, CSV tables, labels as CSV or JSON lines, TAO's tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Contract
from trt_cls.data.stream import Skipped
from trt_cls.evaluation.evaluate import Evaluation, LabelEvaluation, Predictions
from trt_cls.evaluation.metrics import ClassScores, balanced_accuracy, macro_f1, one_answer, top_k_indices
from trt_cls.evaluation.prediction_sets import Decision, decides, decision
from trt_cls.files import atomic, write_csv, write_text
from trt_cls.text import FOREIGN, csv_row, printable

if TYPE_CHECKING:
    from trt_cls.evaluation.compare import Comparison


def results_dict(evaluation: Evaluation, model: Path) -> dict[str, Any]:
    """The content of results.json: numbers, names and lists only."""
    metrics, classes = evaluation.metrics, evaluation.contract.classes
    figures = {
        "top_k": evaluation.top_k,
        "top_1_accuracy": metrics.top_1_accuracy,
        "top_k_accuracy": metrics.top_k_accuracy,
        "balanced_accuracy": balanced_accuracy(metrics.counts),
        "macro_f1": macro_f1(metrics.counts),
        "loss": metrics.loss,
        "classes": list(classes),
        "confusion_matrix": metrics.confusion_matrix.tolist(),
        "per_class": {name: asdict(scores) for name, scores in zip(classes, metrics.per_class, strict=True)},
        "ece": metrics.ece,
        **{name: found for name in ("calibration", "coverage", "unknown") if (found := getattr(evaluation, name))},
    }
    return _results(evaluation, model, figures)


def write_evaluation(evaluation: Evaluation, model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Writes results.json, predictions.csv (path,label,predicted,confidence) and report.html; returns their paths."""
    from trt_cls.evaluation.report.evaluation_page import evaluation_page  # Jinja: a sixth of what `infer` takes

    results, table, report = folder / "results.json", folder / "predictions.csv", folder / "report.html"
    predictions, classes = evaluation.predictions, evaluation.contract.classes
    # ASCII, because a path may not be valid UTF-8
    write_text(results, json.dumps(results_dict(evaluation, model), indent=2, allow_nan=False) + "\n")
    best = predictions.probabilities.argmax(axis=1)
    rows = (
        (sample.path, classes[sample.label], classes[index], f"{row[index]:.6f}")
        for sample, index, row in zip(predictions.samples, best, predictions.probabilities, strict=True)
    )
    write_csv(table, [("path", "label", "predicted", "confidence"), *rows])
    write_text(report, evaluation_page(evaluation, model))
    return results, table, report


def label_results(evaluation: LabelEvaluation, model: Path) -> dict[str, Any]:
    """As `results_dict`, of a multi-label model."""
    metrics, classes = evaluation.metrics, evaluation.contract.classes
    figures = {
        "mAP": metrics.map,
        "micro_f1": metrics.micro_f1,
        "macro_f1": metrics.macro_f1,
        "exact_match": metrics.exact_match,
        "hamming_loss": metrics.hamming_loss,
        "loss": metrics.loss,
        "classes": list(classes),
        "per_class": {name: asdict(scores) for name, scores in zip(classes, metrics.per_class, strict=True)},
    }
    return _results(evaluation, model, figures)


def _results(evaluation: Evaluation | LabelEvaluation, model: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json, in whose middle are the `figures` of one task."""
    contract, predictions = evaluation.contract, evaluation.predictions
    seconds = asdict(predictions.seconds)
    return {
        "model": str(model),
        "backend": evaluation.backend,
        "precision": contract.precision,
        **({"task": "multi"} if contract.task == "multi" else {}),
        "num_images": len(predictions.samples),
        "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in evaluation.skipped],
        **figures,
        **({"images_per_second": evaluation.images_per_second, "seconds": seconds} if seconds["total"] else {}),
    }


def write_label_evaluation(evaluation: LabelEvaluation, model: Path, folder: Path) -> tuple[Path, ...]:
    """Writes results.json, predictions.csv (path,truth,predicted) and .npz, and report.html; returns their paths."""
    from trt_cls.data.labels_csv import SEPARATOR
    from trt_cls.evaluation.report.evaluation_page import label_page

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


def write_comparison(comparison: Comparison, a: Path, b: Path, folder: Path) -> tuple[Path, Path]:
    """Writes changed.csv, a row for each image with different labels, and comparison.html; returns their paths."""
    from trt_cls.evaluation.report import comparison_page

    table, report = folder / "changed.csv", folder / "comparison.html"
    header = ("path", "label_a", "confidence_a", "label_b", "confidence_b", "truth")
    rows = (
        (c.path, c.label_a, f"{c.confidence_a:.6f}", c.label_b, f"{c.confidence_b:.6f}", c.truth or "")
        for c in comparison.changed
    )
    write_csv(table, [header, *rows])
    write_text(report, comparison_page(comparison, a, b))
    return table, report


Form = Literal["csv", "jsonl"]


@dataclass(frozen=True)
class Labeled:
    """One image or frame: its top-k classes, and the answer."""

    source: str | int
    """Path of the image or number of the frame."""
    ranking: tuple[tuple[str, float], ...]
    """Classes with their probabilities, highest first."""
    decision: Decision
    decides: bool
    """Whether the contract says more than the likeliest class: labels, sets or unknown images."""


def labels_of(predictions: Predictions, contract: Contract, top_k: int) -> Iterator[Labeled]:
    """Each image."""
    for sample, row in zip(predictions.samples, predictions.probabilities, strict=True):
        yield labeled(str(sample.path), row, contract, top_k)


def labeled(source: str | int, probabilities: NDArray[np.float32], contract: Contract, top_k: int) -> Labeled:
    """One image, probabilities [classes], with at most all classes; of a multi-label model with its labels."""
    found = decision(probabilities, contract)
    if contract.task == "multi":
        return Labeled(source, found.named, found, True)
    order = top_k_indices(probabilities, top_k)
    ranking = tuple((contract.classes[index], float(probabilities[index])) for index in order)
    return Labeled(source, ranking, found, decides(contract))


def lines(found: Labeled, form: Form) -> str:
    """Without the last newline: rows path,label,confidence for the classes named, or a JSON object with the ranking.

    Where none is named, the row is path,, and the object's label null.
    """
    if form == "csv":
        url = "://" in str(found.source)  # which a path would make ":/"
        source = Path(found.source) if isinstance(found.source, str) and not url else found.source
        rows = [(source, name, f"{share:.6f}") for name, share in found.decision.named] or [(source, "", "")]
        return "".join(map(csv_row, rows)).removesuffix("\n")
    where = "path" if isinstance(found.source, str) else "frame"
    kind, named = found.decision.kind, _shares(found.decision.named)
    first = named[0] if named else {"label": None, "confidence": None}
    decided = {"decision": kind, **({"set": named} if kind == "set" else {})} if found.decides else {}
    return json.dumps({where: found.source, **first, "top": _shares(found.ranking), **decided})


def _shares(ranking: Iterable[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"label": name, "confidence": round(share, 6)} for name, share in ranking]


def write_labels(texts: Iterable[str], path: Path) -> int:
    """Writes the texts to a file that appears only when complete; returns their number."""
    count = 0
    with atomic(path) as beside, beside.open("w", encoding="utf-8", errors=FOREIGN, newline="") as file:
        for text in texts:
            file.write(f"{text}\n")
            count += 1
    return count


LARGEST_MATRIX = 20
"""A larger confusion matrix is not printed; results.json holds it."""


def evaluation_table(evaluation: Evaluation) -> str:
    """The metrics, the confusion matrix if it is small, and the per-class report."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    classes = [printable(name) for name in evaluation.contract.classes]
    fitted = evaluation.calibration
    before = f" ({fitted['ece_before']:.4f} without temperature {fitted['temperature']:.4g})" if fitted else ""
    figures = [
        ("images", f"{len(predictions.samples)}, {len(evaluation.skipped)} skipped"),
        ("top-1 accuracy", f"{metrics.top_1_accuracy:.4f}"),
        (f"top-{evaluation.top_k} accuracy", f"{metrics.top_k_accuracy:.4f}"),
        ("balanced accuracy", f"{balanced_accuracy(metrics.counts):.4f}"),
        ("macro F1", f"{macro_f1(metrics.counts):.4f}"),
        ("loss", f"{metrics.loss:.4f}"),
        ("calibration error", f"{metrics.ece:.4f}{before}"),
        *_decision_figures(evaluation),
        _speed(evaluation),
    ]
    if warning := one_answer(metrics.counts, classes):
        figures.append(("warning", warning))
    parts = ["\n".join(f"{name:18} {value}" for name, value in figures)]
    if len(classes) <= LARGEST_MATRIX:
        parts.append("Confusion Matrix (rows: truth)\n" + confusion_table(metrics.confusion_matrix.tolist(), classes))
    parts.append("Classification Report\n" + report_table(metrics.per_class, classes, metrics.top_1_accuracy))
    return "\n\n".join(parts)


def _speed(evaluation: Evaluation) -> tuple[str, str]:
    by = f"{evaluation.backend}, {evaluation.contract.precision}"
    timed = evaluation.predictions.seconds.total > 0
    return ("images/s", f"{evaluation.images_per_second:.0f} ({by})") if timed else ("backend", by)


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


def _decision_figures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """The effect of the contract's rules, and how well the confidence separates foreign images."""
    if found := evaluation.coverage:
        sizes = f"{found['mean_set_size']:.2f} classes in a set"
        yield "coverage", f"{found['measured']:.4f} of {found['target']:g}, {sizes}"
    for name, counts in evaluation.decisions.items():
        yield name, ", ".join(f"{kind} {count}" for kind, count in counts.items())
    if found := evaluation.unknown:
        yield "unknown AUROC", f"{found['auroc']:.4f} against {found['num_images']} images"


def confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """One row of counts for each class."""
    names = max(len(name) for name in classes)
    digits = max(len(str(count)) for row in matrix for count in row)
    return "\n".join(
        f"{name:>{names}}  " + " ".join(f"{count:{digits}}" for count in row)
        for name, row in zip(classes, matrix, strict=True)
    )


def report_table(scores: Sequence[ClassScores], classes: Sequence[str], accuracy: float) -> str:
    """Precision, recall, F1 and support per class, in the layout of scikit-learn's classification_report."""
    width = max(len("weighted avg"), *(len(name) for name in classes))
    images = sum(score.support for score in scores)
    lines = [f"{'':>{width}} " + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")), ""]
    lines += [_row(name, width, score) for name, score in zip(classes, scores, strict=True)]
    lines += [
        "",
        f"{'accuracy':>{width}} {'':>10} {'':>9} {accuracy:9.2f} {images:9}",
        _row("macro avg", width, _mean(scores, [1] * len(scores))),
        _row("weighted avg", width, _mean(scores, [score.support for score in scores])),
    ]
    return "\n".join(lines)


def skipped_lines(skipped: Sequence[Skipped]) -> str:
    """A line with the reason for each skipped image."""
    return "".join(f"skipped: {printable(image.path)}: {printable(image.reason)}\n" for image in skipped)


def _row(name: str, width: int, score: ClassScores) -> str:
    return f"{name:>{width}}  {score.precision:9.2f} {score.recall:9.2f} {score.f1:9.2f} {score.support:9}"


def _mean(scores: Sequence[ClassScores], weights: Sequence[int]) -> ClassScores:
    def mean(values: list[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    names = [field.name for field in fields(ClassScores) if field.name != "support"]
    means = {name: mean([getattr(score, name) for score in scores]) for name in names}
    return ClassScores(**means, support=sum(score.support for score in scores))
