"""choose.csv, with a row for each variant and provider; the same as Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from trt_cls.choice.decision import REFERENCE, Measured, Outcome, loss_of, reference_of
from trt_cls.errors import DataError
from trt_cls.files import read_small_text, write_csv
from trt_cls.text import printable

COLUMNS = tuple(field.name for field in fields(Measured))
TEXTS = ("name", "path", "provider")
SHARES = ("top1", "top1_low", "top1_high", "mcnemar_p", "ece", "share8")
POSITIVE = ("bytes", "p50_ms", "p99_ms", "ips")


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


HEADINGS = (
    "variant", "provider", "top-1", "95 %", "loss", "p", "ECE", "8 bits", "MB", "plan MB", "p50 ms", "p99 ms",
    "images/s",
)  # fmt: skip


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
