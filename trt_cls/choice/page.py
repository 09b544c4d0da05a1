"""choose.html: the choice, the Pareto front of latency and accuracy, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trt_cls.choice.decision import Decision, Limits, Measured, loss_of, reference_of
from trt_cls.choice.table import HEADINGS, shown_cells
from trt_cls.evaluation.report.page import page, shown, version_rows

WIDTH, HEIGHT = 300.0, 180.0
"""Of the chart's plane, in units of the SVG."""
MARGIN = 0.08
"""Of the spread of the values, on both sides."""
TICKS = 4
LINE = 11
"""Between the names of two points, at least."""


def choice_page(decision: Decision, rows: Sequence[Measured], limits: Limits, notes: Sequence[str], title: str) -> str:
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
        path=shown(Path(chosen.path)) if chosen else "",
        versions=version_rows(),
    )


def limit_rows(limits: Limits) -> list[tuple[str, str]]:
    """The limits for people."""
    found = [("Loss", f"at most {limits.max_loss:g} points of top-1")]
    if limits.max_latency is not None:
        found.append(("Latency", f"at most {limits.max_latency:g} ms, 99th percentile, one image"))
    if limits.max_bytes is not None:
        found.append(("Size", f"at most {limits.max_bytes / 1e6:g} MB"))
    return found


def _chart(decision: Decision, rows: Sequence[Measured], limits: Limits) -> dict[str, Any]:
    """Places in units of the SVG: latency to the right, top-1 up."""
    able = decision.rows
    least = reference_of(able[0], rows).top1 - limits.max_loss / 100
    x = _Scale([0.0, *(row.p99_ms for row in able)], WIDTH)
    y = _Scale([min(1.0, 0.005 + max(row.top1 for row in able)), *(row.top1 for row in able)], HEIGHT)
    dots: list[dict[str, Any]] = [
        {
            "x": x(row.p99_ms),
            "y": HEIGHT - y(row.top1),
            "top": HEIGHT - y(row.top1_high),
            "bottom": HEIGHT - y(row.top1_low),
            "text": f"{row.label}: {row.top1:.2%}, {row.p99_ms:.2f} ms, {row.bytes / 1e6:.2f} MB",
            "name": row.label,
            "kind": "chosen" if row is decision.chosen else "front" if best else "behind",
            "left": x(row.p99_ms) > 0.6 * WIDTH,
        }
        for row, best in zip(able, decision.front, strict=True)
    ]
    free = 0.0
    for dot in sorted(dots, key=lambda dot: dot["y"]):
        dot["label"] = free = max(free, dot["y"] + 3.5)
        free += LINE
    front: list[Measured] = []
    for row in sorted(able, key=lambda row: (row.p99_ms, -row.top1)):
        if not front or row.top1 > front[-1].top1:
            front.append(row)
    corners = [(x(row.p99_ms), HEIGHT - y(row.top1)) for row in front]
    steps = [(b[0], a[1]) for a, b in pairwise(corners)]
    ordered = [point for pair in zip(corners, [*steps, (WIDTH, corners[-1][1])], strict=True) for point in pair]
    return {
        "dots": dots,
        "line": " ".join(f"{px:.1f},{py:.1f}" for px, py in ordered),
        "latency": None if limits.max_latency is None else min(x(limits.max_latency), WIDTH),
        "accuracy": HEIGHT - max(y(least), 0.0),
        "across": [(place, f"{value:.3g}") for place, value in _ticks(x, WIDTH)],
        "up": [(HEIGHT - place, f"{100 * value:.1f}") for place, value in _ticks(y, HEIGHT)],
    }


class _Scale:
    """Values → places from 0 to `length`, with a margin; callable."""

    def __init__(self, values: Sequence[float], length: float) -> None:
        spread = max(values) - min(values) or 1.0
        self.low, self.length = min(values) - MARGIN * spread, length
        self.spread = spread * (1 + 2 * MARGIN)

    def __call__(self, value: float) -> float:
        return min(max((value - self.low) / self.spread * self.length, 0.0), self.length)


def _ticks(scale: _Scale, length: float) -> list[tuple[float, float]]:
    return [
        (length * number / TICKS, scale.low + scale.spread * number / TICKS)
        for number in range(TICKS + 1)
        if scale.low + scale.spread * number / TICKS >= 0
    ]
