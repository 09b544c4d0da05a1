"""The report of an evaluation: accuracy, per-class scores, confusions, calibration, speed and the contract.

That of a multi-label model has scores and threshold of each label, and the surest wrong and missed labels. Only
sorting and the images of the confusion matrix need JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_cls.evaluation.evaluate import Evaluation, LabelEvaluation
from trt_cls.evaluation.metrics import balanced_accuracy, calibration_bins, macro_f1, one_answer, wilson_interval
from trt_cls.evaluation.multi_label import Flags
from trt_cls.evaluation.report import common_folder, contract_rows, page, path_text, version_rows
from trt_cls.evaluation.report.selection import GALLERY, Cell, PicturedAnswer, Selection, select, thumbnails
from trt_cls.preprocessing.image_file import Source

MATRIX = 40
"""Most classes in the confusion matrix; of more, those that are confused most often."""
WORST = 30
"""Classes or labels that come first in the table where there are many."""
PAIRS = 30
"""Length of the list of confusions."""
SKIPPED = 100


@dataclass(frozen=True)
class Picture:
    """An image in the report."""

    path: str
    truth: str
    prediction: str
    confidence: float
    right: bool
    thumbnail: str
    """A data URI; empty if the image can't be read any more."""


def evaluation_page(evaluation: Evaluation, model: Path) -> str:
    """The report as HTML."""
    predictions, classes = evaluation.predictions, evaluation.contract.classes
    before = evaluation.uncalibrated
    folder = common_folder(sample.path for sample in predictions.samples)
    selection = select(predictions)
    confused = sorted((cell for cell in selection.cells if cell.truth != cell.prediction), key=lambda cell: -cell.count)
    thumbs = thumbnails(_pictured(selection))

    def pictures(answers: Iterable[PicturedAnswer]) -> list[Picture]:
        return [
            Picture(
                path=path_text(a.path, folder),
                truth=classes[a.truth],
                prediction=classes[a.prediction],
                confidence=a.confidence,
                right=a.truth == a.prediction,
                thumbnail=thumbs.get(a.path, ""),
            )
            for a in answers
        ]

    return page(
        "evaluation.html",
        title=path_text(model),
        folder=path_text(folder),
        evaluation=evaluation,
        headline=_headline(evaluation),
        balanced_accuracy=balanced_accuracy(evaluation.metrics.counts),
        macro_f1=macro_f1(evaluation.metrics.counts),
        warning=one_answer(evaluation.metrics.counts, classes),
        classes=_class_rows(evaluation, confused),
        worst_first=WORST if len(classes) > MATRIX else 0,
        matrix=_matrix(evaluation, confused),
        pairs=[(cell, classes[cell.truth], classes[cell.prediction]) for cell in confused[:PAIRS]],
        bins_before=[] if before is None else calibration_bins(before, predictions.labels),
        bins=calibration_bins(predictions.probabilities, predictions.labels),
        worst=pictures(selection.worst),
        least_sure=pictures(selection.least_sure),
        stages=_stages(evaluation),
        contract=contract_rows(evaluation.contract),
        versions=version_rows(),
        skipped=[(path_text(image.path, folder), image.reason) for image in evaluation.skipped[:SKIPPED]],
        data=_data(selection.cells, classes, folder, thumbs),
    )


def _pictured(selection: Selection) -> list[tuple[Path, Source]]:
    of_cells = (answer for cell in selection.cells for answer in cell.answers[: cell.pictured])
    return [(answer.path, answer.source) for answer in (*selection.worst, *selection.least_sure, *of_cells)]


def _headline(evaluation: Evaluation) -> list[tuple[str, float, tuple[float, float]]]:
    """Name, share and its confidence interval."""
    images, metrics = len(evaluation.predictions.samples), evaluation.metrics
    shares = [("Top-1 accuracy", metrics.top_1_accuracy)]
    if evaluation.top_k > 1:
        shares.append((f"Top-{evaluation.top_k} accuracy", metrics.top_k_accuracy))
    return [(name, share, wilson_interval(round(share * images), images)) for name, share in shares]


def _class_rows(evaluation: Evaluation, confused: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row of the table for each class; of many, the worst first."""
    most = {cell.truth: cell for cell in reversed(confused)}
    names, matrix = evaluation.contract.classes, evaluation.metrics.confusion_matrix
    rows: list[dict[str, Any]] = [
        {
            "index": index,
            "name": name,
            "scores": scores,
            "interval": wilson_interval(int(matrix[index, index]), scores.support) if scores.support else None,
            "mistaken_for": names[most[index].prediction] if index in most else "",
            "mistakes": most[index].count if index in most else 0,
        }
        for index, (name, scores) in enumerate(zip(names, evaluation.metrics.per_class, strict=True))
    ]
    worst = sorted((row for row in rows if row["scores"].support), key=lambda row: row["scores"].recall)
    worst = worst[: WORST if len(rows) > MATRIX else 0]
    chosen = {row["index"] for row in worst}
    return worst + [row for row in rows if row["index"] not in chosen]


def _matrix(evaluation: Evaluation, confused: Sequence[Cell]) -> dict[str, Any]:
    """The confusion matrix of all classes, or of those that are confused most often, in the classes' order."""
    names, counts = evaluation.contract.classes, evaluation.metrics.confusion_matrix
    kept: Sequence[int] = range(len(names))
    if len(names) > MATRIX:
        most = dict.fromkeys(index for cell in confused for index in (cell.truth, cell.prediction))
        kept = sorted(list(dict.fromkeys([*most, *kept]))[:MATRIX])
    support = np.maximum(counts.sum(axis=1), 1)
    rows = [
        {
            "index": truth,
            "name": names[truth],
            "cells": [(p, int(counts[truth, p]), float(counts[truth, p] / support[truth])) for p in kept],
        }
        for truth in kept
    ]
    return {"names": [names[index] for index in kept], "rows": rows, "complete": len(kept) == len(names)}


def _stages(evaluation: Evaluation) -> list[tuple[str, float]]:
    """Name and seconds of each stage; the sum is the total."""
    stages: dict[str, float] = asdict(evaluation.predictions.seconds)
    total = stages.pop("total")
    rest = total - sum(stages.values())
    return [(name.replace("_", " "), seconds) for name, seconds in stages.items()] + [("other", max(rest, 0.0))]


def _data(
    cells: Iterable[Cell], classes: tuple[str, ...], folder: Path, thumbs: dict[Path, str]
) -> dict[str, list[Any]]:
    """The data of report.js: names of the classes; truth, prediction, count and images of each cell."""
    return {
        "classes": list(classes),
        "cells": [
            [
                cell.truth,
                cell.prediction,
                cell.count,
                [
                    [
                        path_text(answer.path, folder),
                        round(answer.confidence, 4),
                        thumbs.get(answer.path, "") if rank < cell.pictured else "",
                    ]
                    for rank, answer in enumerate(cell.answers)
                ],
            ]
            for cell in cells
        ],
    }


MANY = 40
"""Labels in the table; of more, the WORST come first."""


def label_page(evaluation: LabelEvaluation, model: Path) -> str:
    """The report as HTML."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    folder = common_folder(sample.path for sample in predictions.samples)
    wrong = _extremes(evaluation, evaluation.given & ~evaluation.truth, highest=True)
    missed = _extremes(evaluation, evaluation.truth & ~evaluation.given, highest=False)
    pictured = (predictions.samples[row] for row, _ in (*wrong, *missed))
    thumbs = thumbnails((sample.path, sample.source) for sample in pictured)

    def pictures(places: list[tuple[int, int]]) -> list[Picture]:
        return [
            Picture(
                path=path_text(path := predictions.samples[row].path, folder),
                truth=", ".join(evaluation.named(evaluation.truth[row])) or "no label",
                prediction=evaluation.contract.classes[label],
                confidence=float(predictions.probabilities[row, label]),
                right=False,
                thumbnail=thumbs.get(path, ""),
            )
            for row, label in places
        ]

    rows = list(zip(evaluation.contract.classes, metrics.per_class, strict=True))
    worst = sorted((row for row in rows if row[1].ap is not None), key=lambda row: row[1].ap or 0)
    worst = worst[:WORST] if len(rows) > MANY else []
    first = {name for name, _ in worst}
    return page(
        "labels.html",
        title=path_text(model),
        folder=path_text(folder),
        evaluation=evaluation,
        counted=sum(scores.ap is not None for scores in metrics.per_class),
        classes=worst + [row for row in rows if row[0] not in first],
        worst_first=len(worst),
        wrong=pictures(wrong),
        missed=pictures(missed),
        contract=contract_rows(evaluation.contract),
        versions=version_rows(),
        skipped=[(path_text(image.path, folder), image.reason) for image in predictions.skipped[:SKIPPED]],
    )


def _extremes(evaluation: LabelEvaluation, chosen: Flags, *, highest: bool) -> list[tuple[int, int]]:
    """Image and label of the `chosen` answers with the highest or the lowest probability, those first."""
    rows, labels = np.nonzero(chosen)
    values = evaluation.predictions.probabilities[rows, labels]
    order = np.argsort(-values if highest else values, kind="stable")[:GALLERY]
    return list(zip(rows[order].tolist(), labels[order].tolist(), strict=True))
