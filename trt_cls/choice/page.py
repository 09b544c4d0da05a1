"""choose.html: the choice, the Pareto front of latency and accuracy, and the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trt_cls.choice.decision import Limits, Measured, Outcome, loss_of, reference_of
from trt_cls.choice.table import HEADINGS, shown_cells
from trt_cls.evaluation.report import page, path_text, version_rows

WIDTH, HEIGHT = 300.0, 180.0
"""Of the chart's plane, in units of the SVG."""
TICKS = 4
"""Of an axis, about."""
SLOWER, LOSSES, POINTS = 5.0, 3.0, 2.0
"""What is this many times slower than the fastest, or loses as many times --max-loss, and these points, more than it
allows, is drawn at the edge: it would leave no room between the others."""
DOT = 4.0
"""Radius of a point."""
NUMBER = (6.0, 4.5)
"""Half of the width and height of a point's number."""
NUMBERS = ((0.0, -10.5), (0.0, 10.5), (11.0, 0.0), (-11.0, 0.0), (9.0, -9.0), (-9.0, -9.0), (0.0, -20.0), (0.0, -29.5))
"""Where the middle of a point's number may be, from the point; the first that is free."""


def choice_page(decision: Outcome, rows: Sequence[Measured], limits: Limits, notes: Sequence[str], title: str) -> str:
    """The report as HTML; `rows` are all that were measured, `notes` what could not be."""
    chosen = decision.chosen
    reference = reference_of(chosen or decision.rows[0], rows)
    return page(
        "choice.html",
        title=title,
        chosen=chosen,
        loss=loss_of(chosen, reference) if chosen else 0.0,
        failure=decision.failure,
        limits=limit_rows(limits),
        chart=_chart(decision, rows, limits),
        headings=HEADINGS,
        table=[
            (shown_cells(row, rows), reason, best, row is chosen)
            for row, reason, best in zip(decision.rows, decision.reasons, decision.front, strict=True)
        ],
        notes=notes,
        path=path_text(Path(chosen.path)) if chosen else "",
        versions=version_rows(),
    )


def limit_rows(limits: Limits) -> list[tuple[str, str]]:
    """The limits for people."""
    found = [("Loss", f"at most {limits.max_loss:g} point{'s' if limits.max_loss != 1 else ''} of top-1")]
    if limits.max_latency is not None:
        found.append(("Latency", f"at most {limits.max_latency:g} ms, 99th percentile, one image"))
    if limits.max_bytes is not None:
        found.append(("Size", f"at most {limits.max_bytes / 1e6:g} MB"))
    return found


def _chart(decision: Outcome, rows: Sequence[Measured], limits: Limits) -> dict[str, Any]:
    """Places in units of the SVG: latency to the right, top-1 up."""
    able = decision.rows
    least = 100 * reference_of(able[0], rows).top1 - limits.max_loss
    right = max(SLOWER * min(row.p99_ms for row in able), limits.max_latency or 0.0)
    bottom = least - max(LOSSES * limits.max_loss, POINTS)
    x, across = _axis([0.0, *(min(row.p99_ms, right) for row in able)], WIDTH)
    y, up = _axis([least, *(max(100 * row.top1, bottom) for row in able)], HEIGHT)
    places = [(x(row.p99_ms), HEIGHT - y(100 * row.top1)) for row in able]
    numbers = _numbers(places)
    dots = [
        {
            "number": number,
            "x": place[0],
            "y": place[1],
            "label": numbers[number - 1],
            "text": f"{row.label}: {row.top1:.2%}, {row.p99_ms:.2f} ms, {row.bytes / 1e6:.2f} MB",
            "kind": "chosen" if row is decision.chosen else "best" if best else "behind",
        }
        for number, (row, place, best) in enumerate(zip(able, places, decision.front, strict=True), 1)
    ]
    return {
        "dots": dots,
        "line": " ".join(f"{left:.1f},{top:.1f}" for left, top in _front(places)),
        "latency": None if limits.max_latency is None else x(limits.max_latency),
        "accuracy": HEIGHT - y(least),
        "across": across,
        "up": [(HEIGHT - place, text) for place, text in up],
    }


def _front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the line above which and to the left of which there is no point."""
    corners: list[tuple[float, float]] = []
    for left, top in sorted(places):
        if not corners:
            corners.append((left, top))
        elif top < corners[-1][1]:
            corners += [(left, corners[-1][1]), (left, top)]
    return [*corners, (WIDTH, corners[-1][1])]


def _numbers(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The middle of each point's number, where it meets as few points and other numbers as it can."""
    found: list[tuple[float, float]] = []

    def met(left: float, top: float) -> int:
        width, height = NUMBER
        points = sum(abs(left - x) < width + DOT and abs(top - y) < height + DOT for x, y in places)
        others = sum(abs(left - x) < 2 * width and abs(top - y) < 2 * height for x, y in found)
        return points + others + (top + height > HEIGHT + DOT + 1)  # below it the axis has its numbers

    for left, top in places:
        found.append(min(((left + right, top + down) for right, down in NUMBERS), key=lambda place: met(*place)))
    return found


def _axis(values: Sequence[float], length: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """What gives a value its place from 0 to `length`, and the places and texts of round numbers."""
    spread = max(max(values) - min(values), 1e-3 * max(values), 1e-6)
    rough = spread / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.floor(min(values) / step)
    last = max(math.ceil(max(values) / step), first + 1)
    low, whole = first * step, (last - first) * step

    def place(value: float) -> float:
        return min(max((value - low) / whole, 0.0), 1.0) * length

    ticks = range(first, last + 1)
    return place, [(place(number * step), f"{number * step:.6g}") for number in ticks]
