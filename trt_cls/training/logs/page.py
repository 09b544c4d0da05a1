"""training.html: curves, the recall of each class over time, and pictures as the network sees them.

Written again after each epoch; the template is that of the other reports, in `evaluation/report`. Does not know: the
training itself, of which it gets rows and one batch.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Skipped
from trt_cls.evaluation.report import contract_rows, page, path_text, percent, version_rows
from trt_cls.files import write_text
from trt_cls.preprocessing.pillow import Pixels, pixels_from_input
from trt_cls.training.logs import METRICS, Averaged, EpochRow, Log
from trt_cls.training.logs.files import TEXT_SIZE
from trt_cls.training.run_folder import RunFolder
from trt_cls.training.setup import Setup
from trt_cls.training.state import room_to_save

SHEET_PIXELS, FEWEST, MOST = 1_250_000, 8, 64
"""Pixels and pictures of the sheet: 24 pictures at 224×224."""
CLASSES = 30
SKIPPED = 100
WIDTH, HEIGHT = 300, 160
"""Of a chart's plane, in units of the SVG."""
POINTS, SPARK_POINTS = 300, 60
SPIKE = 4
"""A loss that is so many times the median is cut off: the first epochs may be a hundred times above the rest."""
DOTS = 60
"""Most epochs whose points carry their values."""
CHARTS: tuple[tuple[str, Mapping[str, str], float | None], ...] = (
    ("Loss", {"training": "loss", "validation": "val_loss"}, None),
    ("Top-1 accuracy", {"training": "acc", "validation": "val_acc"}, 1.0),
    ("Learning rate", {"last step": "lr"}, None),
    ("Penalty on weights", {"training": "penalty", "validation": "val_penalty"}, None),
)
"""Title, the field of `EpochRow` of each curve, the upper end of the scale if it is fixed."""
OF_LABELS: tuple[tuple[str, Mapping[str, str], float | None], ...] = (
    CHARTS[0],
    ("Mean average precision", {"validation": "val_map"}, 1.0),
    ("Images with all labels right", {"training": "acc", "validation": "val_acc"}, 1.0),
    *CHARTS[2:],
)
"""The charts of multi-label training."""


class TrainingPage(Log):
    """The page; `skipped` gives the broken images of both folders so far."""

    def __init__(self, folder: RunFolder, setup: Setup, skipped: Callable[[], Sequence[Skipped]]) -> None:
        self._folder, self._setup, self._skipped = folder, setup, skipped
        self._metric = setup.extensions.best_metric
        self._sheet: dict[str, Any] = {"pictures": [], "epoch": 0, "side": 0}
        self._averaged: Averaged | None = None

    def first_batch(self, epoch: int, batch: TrainingBatch) -> None:
        """Keeps the pictures of this run's first batch."""
        if self._sheet["pictures"] or not len(batch.images):
            return
        contract = self._setup.contract
        side = contract.preprocessing.width
        count = min(MOST, max(FEWEST, SHEET_PIXELS // (side * contract.preprocessing.height)))
        pixels = pixels_from_input(batch.images[:count].cpu().numpy(), contract.preprocessing)
        targets = batch.targets[:count].cpu().numpy()
        names: Iterable[list[str]] = (_named(target, contract.classes) for target in targets)
        if contract.task == "multi":
            smoothing = self._setup.config.label_smoothing
            names = (_labels_named(target, contract.classes, smoothing) for target in targets)
        pictures = list(zip(map(_png, pixels), names, strict=False))
        self._sheet = {"pictures": pictures, "epoch": epoch, "side": side}

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        self._write(rows, f"epoch {rows[-1].epoch} of {self._setup.config.n_epochs} done")

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """See `Log.averaged`."""
        self._averaged = averaged

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """See `Log.done`."""
        self._write(rows, ended)

    def _write(self, rows: Sequence[EpochRow], state: str) -> None:
        best = max(rows, key=lambda row: row.rank(self._metric))
        skipped, setup = self._skipped(), self._setup
        text = page(
            "training.html",
            title=path_text(self._folder.root),
            state=state,
            images=(len(setup.train.samples), len(setup.val.samples)),
            best=best,
            metric=METRICS[self._metric],
            averaged=self._averaged,
            charts=[_chart(*chart, rows, best) for chart in (OF_LABELS if best.thresholds else CHARTS)],
            classes=_classes(rows, best, setup.contract.classes),
            all_classes=len(setup.contract.classes),
            sheet=self._sheet,
            skipped=[(path_text(image.path), image.reason) for image in skipped[:SKIPPED]],
            skipped_count=len(skipped),
            contract=contract_rows(setup.contract),
            versions=version_rows(),
        )
        with room_to_save(self._folder.page, len(text) + TEXT_SIZE):
            write_text(self._folder.page, text)


def _chart(
    title: str, fields: Mapping[str, str], high: float | None, rows: Sequence[EpochRow], best: EpochRow
) -> dict[str, Any]:
    """A plot for the template: places in units of the SVG, each with its text."""
    values = [getattr(row, field) for row in rows for field in fields.values()]
    largest = high or min(max(values), SPIKE * float(np.median(values)) if title == "Loss" else math.inf)
    top, ticks = scale(largest)

    def x(row: EpochRow) -> float:
        first, last = rows[0].epoch, rows[-1].epoch
        return WIDTH * (row.epoch - first) / (last - first) if last > first else WIDTH / 2

    def curve(name: str, field: str) -> dict[str, Any]:
        drawn = [(x(row), HEIGHT * (1 - min(getattr(row, field) / top, 1)), row) for row in _spread(rows, POINTS)]
        dots = [(left, down, f"epoch {row.epoch}: {getattr(row, field):.4g}") for left, down, row in drawn]
        points = " ".join(f"{left:.1f},{down:.1f}" for left, down, _ in drawn)
        shown_dots = dots if len(rows) <= DOTS else []
        return {"name": name, "points": points, "dots": shown_dots, "value": f"{getattr(best, field):.4g}"}

    return {
        "title": title,
        "curves": [curve(name, field) for name, field in fields.items()],
        "ticks": ticks,
        "across": [(x(row), row.epoch) for row in _spread(rows, 5)],
        "best": x(best),
    }


def scale(largest: float) -> tuple[float, list[tuple[float, str]]]:
    """The upper end of a chart's scale from 0 on, and its ticks: their places and texts."""
    step = _step(largest)
    count = max(1, math.ceil(largest / step - 1e-9))
    return step * count, [(HEIGHT * (1 - tick / count), f"{step * tick:.3g}") for tick in range(count + 1)]


def _step(high: float) -> float:
    """The distance of three to five ticks up to `high`: 1, 2 or 5 times a power of ten."""
    if not high > 0:
        return 0.2
    power: float = 10.0 ** math.floor(math.log10(high / 4))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= high / 5)


def _spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly spread, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    return [rows[index] for index in chosen]


def _classes(rows: Sequence[EpochRow], best: EpochRow, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes with the lowest recall in the best epoch, each with its recalls over time as a line of 100 × 20."""
    worst = sorted(range(len(names)), key=lambda index: best.recalls[index])[:CLASSES]
    drawn = _spread(rows, SPARK_POINTS)
    across = [100 * number / max(len(drawn) - 1, 1) for number in range(len(drawn))]

    def line(index: int) -> str:
        return " ".join(f"{x:.1f},{20 * (1 - row.recalls[index]):.1f}" for x, row in zip(across, drawn, strict=True))

    return [
        {"name": names[index], "line": line(index), "best": best.recalls[index], "last": rows[-1].recalls[index]}
        for index in worst
    ]


def _named(target: Any, classes: Sequence[str]) -> list[str]:
    """The class of a picture, or the two that are mixed in it with their shares."""
    first, *second = (int(index) for index in np.argsort(-target, kind="stable")[:2])
    if not second or target[second[0]] - np.median(np.sort(target)[: max(len(target) - 1, 1)]) < MIXED:
        return [classes[first]]
    return [f"{classes[index]} {percent(float(target[index]), 0)}" for index in (first, *second)]


def _labels_named(target: Any, classes: Sequence[str], smoothing: float) -> list[str]:
    """The labels of a picture; those that only one of two mixed pictures has, with their shares."""
    named = []
    for index in np.argsort(-target, kind="stable"):
        share = float(target[index]) - smoothing / 2
        if share > MIXED:
            mixed = share < 1 - smoothing - MIXED
            named.append(f"{classes[index]} {percent(share, 0)}" if mixed else classes[index])
    return named or ["no label"]


MIXED = 0.01
"""A second class with so much more of the target than smoothing gives to any is mixed in."""


def _png(pixels: Pixels) -> str:
    """A data URI with these very pixels."""
    content = BytesIO()
    Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels).save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
