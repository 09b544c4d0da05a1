"""Labels as lines of text, for other programs to read.

What is not known here: where images come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.evaluation.evaluate import Predictions
from trt_cls.files import atomic
from trt_cls.text import FOREIGN, csv_row

Format = Literal["csv", "jsonl"]


@dataclass(frozen=True)
class Labelled:
    """One image or frame, and its likeliest classes."""

    source: str | int
    """Path of the image, or number of the frame."""
    ranking: tuple[tuple[str, float], ...]
    """Classes with their probabilities, the likeliest first."""


def labels_of(predictions: Predictions, classes: Sequence[str], top_k: int) -> Iterator[Labelled]:
    """Each image with its `top_k` likeliest classes."""
    for sample, row in zip(predictions.samples, predictions.probabilities, strict=True):
        yield Labelled(str(sample.path), likeliest(row, classes, top_k))


def likeliest(probabilities: NDArray[np.float32], classes: Sequence[str], top_k: int) -> tuple[tuple[str, float], ...]:
    """The `top_k` likeliest classes of one image (all, where there are fewer) with their probabilities, best first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple((classes[index], float(probabilities[index])) for index in order)


def line(labelled: Labelled, form: Format) -> str:
    """One line without its end: path,label,confidence as TAO does, or a JSON object with all of the ranking."""
    label, confidence = labelled.ranking[0]
    if form == "csv":
        source = Path(labelled.source) if isinstance(labelled.source, str) else labelled.source
        return csv_row((source, label, f"{confidence:.6f}")).removesuffix("\n")
    where = "path" if isinstance(labelled.source, str) else "frame"
    top = [{"label": name, "confidence": round(share, 6)} for name, share in labelled.ranking]
    return json.dumps({where: labelled.source, **top[0], "top": top})


def write_labels(lines: Iterable[str], path: Path) -> int:
    """Writes the lines, whole or not at all, and returns their number."""
    count = 0
    with atomic(path) as beside, beside.open("w", encoding="utf-8", errors=FOREIGN, newline="") as file:
        for text in lines:
            file.write(f"{text}\n")
            count += 1
    return count
