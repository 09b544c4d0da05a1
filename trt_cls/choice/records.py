"""What choose writes: choose.csv with a row for each variant and provider, the same as Markdown, and choose.html.

The page shows the choice, the Pareto front of latency and accuracy, and the table. Does not know: how one is chosen.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from trt_cls.choice.decision import REFERENCE, Limits, Measured, Outcome, loss_of, reference_of
from trt_cls.errors import DataError
from trt_cls.evaluation.report import page, path_text, version_rows
from trt_cls.files import read_small_text, write_csv
from trt_cls.text import printable

COLUMNS = tuple(field.name for field in fields(Measured))
TEXTS = ("name", "path", "provider")
SHARES = ("top1", "top1_low", "top1_high", "mcnemar_p", "ece", "share8")
POSITIVE = ("bytes", "p50_ms", "p99_ms", "ips")
HEADINGS = (
    "variant", "provider", "top-1", "95 %", "loss", "p", "ECE", "8 bits", "MB", "plan MB", "p50 ms", "p99 ms",
    "images/s",
)  # fmt: skip
WIDTH, HEIGHT = 300.0, 180.0
"""Of the chart's plane, in units of the SVG."""
TICKS = 4
"""Of an axis, about."""
SLOWER, LOSSES, POINTS = 5.0, 3.0, 2.0
"""What is this many times slower than the fastest, or loses as many times --max-loss, and these points, more than it
allows, is drawn at the edge: it would leave no room between the others."""
NUMBERS = ((0.0, -7.0), (0.0, 14.0), (10.0, 3.5), (-10.0, 3.5))
"""Places of the numbers of points that nearly coincide, from each point."""


def write_rows(path: Path, rows: Sequence[Measured]) -> None:
    """Writes choose.csv, which `read_rows` reads back."""
    write_csv(path, [COLUMNS, *(_cells(row) for row in rows)])


def _cells(row: Measured) -> list[object]:
    return [
        "" if value is None else f"{value:.8g}" if isinstance(value, float) else value for value in asdict(row).values()
    ]


def read_rows(path: Path) -> list[Measured]:
    """The rows of a choose.csv, with a reference among them.

    Raises:
        DataError: it can't be read, a column is missing, or a value is none.
    """
    try:
        lines = list(csv.reader(read_small_text(path).splitlines()))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); expected a choose.csv that choose wrote") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}; expected a choose.csv that choose wrote") from error
    header = lines[0] if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; expected {','.join(COLUMNS)}; "
            "measure again with choose -m"
        )
    rows = [
        _row(path, number, dict(zip(header, line, strict=False))) for number, line in enumerate(lines[1:], 2) if line
    ]
    if not any(row.name == REFERENCE for row in rows):
        raise DataError(f"{path}: no row is named {REFERENCE}, from which losses are counted; expected one; measure it")
    return rows


def _row(path: Path, number: int, cells: dict[str, str]) -> Measured:
    values: dict[str, object] = {name: cells.get(name, "") for name in TEXTS}
    for name in COLUMNS[len(TEXTS) :]:
        text = cells.get(name, "").strip()
        if name == "plan_bytes" and not text:
            values[name] = None
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low, high = float(name in POSITIVE and 1e-12), 1.0 if name in SHARES else math.inf
        if not low <= value <= high or value == math.inf:
            expected = "a share from 0 to 1" if name in SHARES else "a number above 0"
            raise DataError(printable(f'{path}:{number}: {name} is "{text}"; expected {expected}; measure it again'))
        values[name] = int(value) if name in ("bytes", "plan_bytes") else value
    return Measured(**values)  # type: ignore[arg-type]


def shown_cells(row: Measured, rows: Sequence[Measured]) -> tuple[str, ...]:
    """A row for display, by HEADINGS."""
    return (
        row.name,
        row.provider,
        f"{row.top1:.2%}",
        f"{100 * row.top1_low:.1f}-{100 * row.top1_high:.1f}",
        f"{loss_of(row, reference_of(row, rows)):+.2f}",
        f"{row.mcnemar_p:.2g}",
        f"{row.ece:.4f}",
        f"{row.share8:.0%}",
        f"{row.bytes / 1e6:.2f}",
        "" if row.plan_bytes is None else f"{row.plan_bytes / 1e6:.2f}",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.ips:,.0f}",
    )


def markdown(decision: Outcome, rows: Sequence[Measured], notes: Sequence[str]) -> str:
    """The table, the choice and its reasons; `rows` are all that were measured, `notes` what could not be."""
    return "\n".join(_lines(decision, rows, notes)) + "\n"


def _lines(decision: Outcome, rows: Sequence[Measured], notes: Sequence[str]) -> Iterator[str]:
    yield f"**{decision.chosen.label}**" if decision.chosen else f"No variant fits: {decision.failure}."
    yield ""
    yield f"| {' | '.join((*HEADINGS, 'Pareto', 'why'))} |"
    yield "|" + "---|" * (len(HEADINGS) + 2)
    for row, reason, best in zip(decision.rows, decision.reasons, decision.front, strict=True):
        cells = (*shown_cells(row, rows), "yes" if best else "", reason)
        yield f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in cells)} |"
    for note in notes:
        yield f"\n{printable(note)}"


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
    """The limits for display."""
    found = [("Loss", f"at most {limits.max_loss:g} points of top-1")]
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
    dots = [
        {
            "number": number,
            "x": place[0],
            "y": place[1],
            "label": _beside(place, places[: number - 1]),
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


def _beside(place: tuple[float, float], others: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where the number of a point stands: above it, or where no number of those near it does."""
    near = sum(abs(place[0] - left) < 12 and abs(place[1] - top) < 10 for left, top in others)
    right, down = NUMBERS[near % len(NUMBERS)]
    return place[0] + right, place[1] + down


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
