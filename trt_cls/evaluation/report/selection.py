"""The images of a report: worst mistakes, least sure images, examples of each confusion; thumbnails as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.stream import WORKERS
from trt_cls.errors import TrtClsError
from trt_cls.evaluation.evaluate import Predictions
from trt_cls.preprocessing.image_file import Source, opened_image
from trt_cls.preprocessing.images import eight_bit, loaded

GALLERY = 24
"""Number of worst mistakes, and of least sure images."""
LISTED = 10_000
"""Most images of the confusion matrix with a name."""
PICTURED = 500
"""Most of them with a thumbnail: 2.5 MB of photographs, 7 MB of noise."""
PER_CELL = 24


@dataclass(frozen=True)
class PicturedAnswer:
    """One image with its true and predicted class, as indices."""

    path: Path
    truth: int
    prediction: int
    confidence: float
    """Probability of the prediction."""
    source: Source
    """What the image is read from."""


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    truth: int
    prediction: int
    count: int
    answers: tuple[PicturedAnswer, ...]
    """The images that are listed: mistakes with the highest, right answers with the lowest confidence first."""
    pictured: int
    """How many of them, from the first, have a thumbnail."""


@dataclass(frozen=True)
class Selection:
    """The images of a report."""

    worst: tuple[PicturedAnswer, ...]
    """Mistakes, highest confidence first."""
    least_sure: tuple[PicturedAnswer, ...]
    """All images, lowest confidence first."""
    cells: tuple[Cell, ...]
    """Cells that are not empty, row by row."""


def select(predictions: Predictions) -> Selection:
    """The images to show of an evaluation."""
    probabilities, labels = predictions.probabilities, predictions.labels
    best, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)

    def answers(indices: Sequence[int] | NDArray[np.int64]) -> tuple[PicturedAnswer, ...]:
        shown = ((predictions.samples[index], index) for index in indices)
        return tuple(
            PicturedAnswer(sample.path, int(labels[index]), int(best[index]), float(confidence[index]), sample.source)
            for sample, index in shown
        )

    wrong = np.flatnonzero(labels != best)
    rising = np.argsort(confidence, kind="stable")
    classes = probabilities.shape[1]
    members = _members(labels * classes + best, rising, labels == best)
    # mistakes first, those that are made most often at their head
    order = sorted(members, key=lambda cell: (cell % (classes + 1) == 0, -len(members[cell])))
    sizes = {cell: len(members[cell]) for cell in order}
    listed, pictured = _dealt(sizes, LISTED), _dealt(sizes, PICTURED)
    return Selection(
        worst=answers(wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]),
        least_sure=answers(rising[:GALLERY]),
        cells=tuple(
            Cell(cell // classes, cell % classes, len(indices), answers(indices[: listed[cell]]), pictured[cell])
            for cell, indices in sorted(members.items())
        ),
    )


def _members(
    cells: NDArray[np.int64], rising: NDArray[np.int64], right: NDArray[np.bool_]
) -> dict[int, NDArray[np.int64]]:
    """Cell → its images: of mistakes those with the highest confidence first, of right answers the lowest."""
    order = np.concatenate([rising[::-1][~right[rising[::-1]]], rising[right[rising]]])
    order = order[np.argsort(cells[order], kind="stable")]
    found, starts = np.unique(cells[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def _dealt(sizes: dict[int, int], limit: int) -> dict[int, int]:
    """How many images to take of each cell: one of each, then a second one of each and so on, up to `limit`."""
    dealt = dict.fromkeys(sizes, 0)
    for rank in range(PER_CELL):
        for cell, size in sizes.items():
            if limit and rank < size:
                dealt[cell] += 1
                limit -= 1
    return dealt


SIDE = 128
"""Longer side of a thumbnail; at quality 75 a photograph takes 4 kB, noise 10 kB."""
QUALITY = 75
ICON = 64
"""Thumbnails up to this side are PNG: JPEG artifacts would hide what they show."""


def thumbnails(images: Iterable[tuple[Path, Source]]) -> dict[Path, str]:
    """A data URI for each image that can still be read, by its path."""
    distinct = dict(images)
    with ThreadPoolExecutor(WORKERS) as pool:
        made = zip(distinct, pool.map(_thumbnail, distinct.values()), strict=True)
        return {path: uri for path, uri in made if uri is not None}


def _thumbnail(source: Source) -> str | None:
    try:
        with opened_image(source) as (image, _):
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG decodes at a fraction of the size, several times faster
            small = eight_bit(loaded(image), 3)
            small.thumbnail((SIDE, SIDE))
    except TrtClsError:
        return None
    kind = "png" if max(small.size) <= ICON else "jpeg"
    content = BytesIO()
    small.save(content, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
