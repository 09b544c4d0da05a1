"""Results as text for the terminal, in the form that TAO prints."""

from __future__ import annotations

from collections.abc import Sequence

from trt_cls.data.stream import Skipped
from trt_cls.evaluation.evaluate import Evaluation
from trt_cls.evaluation.metrics import ClassScores
from trt_cls.text import printable

MOST_CLASSES = 20
"""A larger confusion matrix is unreadable in a terminal; results.json holds it."""


def evaluation_table(evaluation: Evaluation) -> str:
    """The figures, the confusion matrix of a few classes, and the report by class."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    classes = [printable(name) for name in evaluation.contract.classes]
    figures = [
        ("images", f"{len(predictions.samples)}, {len(predictions.skipped)} skipped"),
        ("top-1 accuracy", f"{metrics.top_1_accuracy:.4f}"),
        (f"top-{evaluation.top_k} accuracy", f"{metrics.top_k_accuracy:.4f}"),
        ("loss", f"{metrics.loss:.4f}"),
        ("calibration error", f"{metrics.ece:.4f}"),
        ("images/s", f"{evaluation.images_per_second:.0f} ({evaluation.backend}, {evaluation.contract.precision})"),
    ]
    parts = ["\n".join(f"{name:18} {value}" for name, value in figures)]
    if len(classes) <= MOST_CLASSES:
        parts.append("Confusion Matrix (rows: truth)\n" + confusion_table(metrics.confusion_matrix.tolist(), classes))
    parts.append("Classification Report\n" + report_table(metrics.per_class, classes, metrics.top_1_accuracy))
    return "\n\n".join(parts)


def confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """One row of counts for each class."""
    names = max(len(name) for name in classes)
    digits = max(len(str(count)) for row in matrix for count in row)
    return "\n".join(
        f"{name:>{names}}  " + " ".join(f"{count:{digits}}" for count in row)
        for name, row in zip(classes, matrix, strict=True)
    )


def report_table(scores: Sequence[ClassScores], classes: Sequence[str], accuracy: float) -> str:
    """Precision, recall, F1 and support by class, laid out as scikit-learn's classification_report."""
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
    """A line for each image that was left out, with the reason; nothing where there is none."""
    return "".join(f"skipped: {printable(image.path)}: {printable(image.reason)}\n" for image in skipped)


def _row(name: str, width: int, score: ClassScores) -> str:
    return f"{name:>{width}}  {score.precision:9.2f} {score.recall:9.2f} {score.f1:9.2f} {score.support:9}"


def _mean(scores: Sequence[ClassScores], weights: Sequence[int]) -> ClassScores:
    def mean(values: list[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    return ClassScores(
        precision=mean([score.precision for score in scores]),
        recall=mean([score.recall for score in scores]),
        f1=mean([score.f1 for score in scores]),
        support=sum(score.support for score in scores),
    )
