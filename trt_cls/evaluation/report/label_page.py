"""The report of a multi-label evaluation: scores and threshold of each label, the surest wrong and missed labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trt_cls.evaluation.label_evaluation import LabelEvaluation
from trt_cls.evaluation.multi_label import Flags
from trt_cls.evaluation.report.page import common_folder, contract_rows, page, shown, version_rows
from trt_cls.evaluation.report.selection import GALLERY, thumbnails

SKIPPED = 100
WORST = 30
"""Labels that come first in the table where there are more than MANY."""
MANY = 40


def label_page(evaluation: LabelEvaluation, model: Path) -> str:
    """The report as HTML."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    folder = common_folder(sample.path for sample in predictions.samples)
    wrong = _extremes(evaluation, evaluation.given & ~evaluation.truth, highest=True)
    missed = _extremes(evaluation, evaluation.truth & ~evaluation.given, highest=False)
    pictured = (predictions.samples[row] for row, _ in (*wrong, *missed))
    thumbs = thumbnails((sample.path, sample.source) for sample in pictured)

    def pictures(places: list[tuple[int, int]]) -> list[dict[str, Any]]:
        return [
            {
                "path": shown(path := predictions.samples[row].path, folder),
                "label": evaluation.contract.classes[label],
                "probability": float(predictions.probabilities[row, label]),
                "truth": ", ".join(evaluation.named(evaluation.truth[row])) or "no label",
                "thumbnail": thumbs.get(path, ""),
            }
            for row, label in places
        ]

    rows = list(zip(evaluation.contract.classes, metrics.per_class, strict=True))
    worst = sorted((row for row in rows if row[1].ap is not None), key=lambda row: row[1].ap or 0)
    worst = worst[:WORST] if len(rows) > MANY else []
    first = {name for name, _ in worst}
    return page(
        "labels.html",
        title=shown(model),
        folder=shown(folder),
        evaluation=evaluation,
        counted=sum(scores.ap is not None for scores in metrics.per_class),
        classes=worst + [row for row in rows if row[0] not in first],
        worst_first=len(worst),
        wrong=pictures(wrong),
        missed=pictures(missed),
        contract=contract_rows(evaluation.contract),
        versions=version_rows(),
        skipped=[(shown(image.path, folder), image.reason) for image in predictions.skipped[:SKIPPED]],
    )


def _extremes(evaluation: LabelEvaluation, chosen: Flags, *, highest: bool) -> list[tuple[int, int]]:
    """Image and label of the `chosen` answers with the highest or the lowest probability, those first."""
    rows, labels = np.nonzero(chosen)
    values = evaluation.predictions.probabilities[rows, labels]
    order = np.argsort(-values if highest else values, kind="stable")[:GALLERY]
    return list(zip(rows[order].tolist(), labels[order].tolist(), strict=True))
