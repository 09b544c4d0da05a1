"""Which of several measured variants of a network to ship: the fastest within limits, and why each other one is not.

Pure: measurements in, a decision out. The choice is never dominated: no other variant within the limits is as fast, as
accurate and as small, and better in one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

REFERENCE = "fp32"
"""Name of the variant that losses are counted from."""
SLACK = 1e-9
"""Of decimal fractions: 92.5 points less 0.5 are 92.0."""


@dataclass(frozen=True)
class Measured:
    """One variant on one provider; the fields are the columns of choose.csv."""

    name: str
    path: str
    """The file that ran."""
    provider: str
    top1: float
    """A share, 0 to 1, as the interval of 95 %, `ece` and `share8`."""
    top1_low: float
    top1_high: float
    mcnemar_p: float
    """Of McNemar's exact test against the reference: how likely two equally good models differ by this or more."""
    ece: float
    share8: float
    """Of the multiply-adds, in 8 bits."""
    bytes: int
    """Of the file at `path`."""
    plan_bytes: int | None
    """Of the variant's engine; None: none was built."""
    p50_ms: float
    """Of a batch of one image, as `p99_ms`."""
    p99_ms: float
    ips: float
    """Images/s, batch after batch."""

    @property
    def label(self) -> str:
        """For display."""
        return f"{self.name} on {self.provider}"

    @property
    def merits(self) -> tuple[float, float, float]:
        """What limits are about, the smaller the better, the first counting most."""
        return self.p99_ms, -self.top1, self.bytes


@dataclass(frozen=True)
class Limits:
    """What a variant must keep."""

    max_loss: float = 0.5
    """Points of top-1 that may be lost against the reference."""
    max_latency: float | None = None
    """Milliseconds of the 99th percentile."""
    max_bytes: int | None = None


class Breach(NamedTuple):
    """A limit that a variant does not keep."""

    text: str
    """What it has, and by how much that is too much."""
    excess: float
    """As a share of the limit."""


@dataclass(frozen=True)
class Outcome:
    """The chosen variant, and why each row was chosen or not."""

    chosen: Measured | None
    """None: no variant keeps the limits."""
    rows: tuple[Measured, ...]
    """Those that could be chosen."""
    reasons: tuple[str, ...]
    """Of each row."""
    front: tuple[bool, ...]
    """Whether each row is on the Pareto front of latency, accuracy and size."""
    failure: str
    """Where none is chosen: the variant that comes nearest, and which limits it fails by how much."""


def decide(rows: Sequence[Measured], limits: Limits, provider: str = "auto") -> Outcome:
    """The fastest of `rows` on `provider` that keeps `limits`; of equally fast ones the most accurate, then smallest.

    "auto" is any provider. There is at least one such row, and a row of the reference.
    """
    able = tuple(row for row in rows if provider in ("auto", row.provider))
    broken = [faults(row, reference_of(row, rows), limits) for row in able]
    fitting = [row for row, found in zip(able, broken, strict=True) if not found]
    chosen = min(fitting, key=lambda row: row.merits, default=None)
    reasons = tuple(_reason(row, found, chosen) for row, found in zip(able, broken, strict=True))
    front = tuple(not any(dominates(other, row) for other in able) for row in able)
    failure = ""
    if chosen is None:
        nearest, found = min(zip(able, broken, strict=True), key=lambda pair: sum(fault.excess for fault in pair[1]))
        failure = f"{nearest.label} comes nearest, but {' and '.join(fault.text for fault in found)}"
    return Outcome(chosen, able, reasons, front, failure)


def reference_of(row: Measured, rows: Sequence[Measured]) -> Measured:
    """The reference on the provider of `row`; another provider's where that one has none."""
    known = [other for other in rows if other.name == REFERENCE]
    return next((other for other in known if other.provider == row.provider), known[0])


def loss_of(row: Measured, reference: Measured) -> float:
    """Points of top-1 that `row` loses; negative where it gains."""
    return 100 * (reference.top1 - row.top1)


def faults(row: Measured, reference: Measured, limits: Limits) -> list[Breach]:
    """The limits that `row` does not keep."""
    loss = loss_of(row, reference)
    megabytes = None if limits.max_bytes is None else limits.max_bytes / 1e6
    kept = (
        ("loses", loss, limits.max_loss, "{:.2f} points of top-1", "--max-loss"),
        ("takes", row.p99_ms, limits.max_latency, "{:.2f} ms at the 99th percentile", "--max-latency"),
        ("has", row.bytes / 1e6, megabytes, "{:.2f} MB", "--max-size"),
    )
    found = []
    for verb, value, limit, form, flag in kept:
        if limit is not None and not value <= limit + SLACK:
            more = f"{value - limit:.3g} more than {flag} allows"
            found.append(Breach(f"{verb} {form.format(value)}, {more}", (value - limit) / max(abs(limit), SLACK)))
    return found


def dominates(one: Measured, other: Measured) -> bool:
    """Whether `one` is nowhere worse than `other`, and better somewhere."""
    pairs = list(zip(one.merits, other.merits, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _reason(row: Measured, found: Sequence[Breach], chosen: Measured | None) -> str:
    if found:
        return " and ".join(fault.text for fault in found)
    if chosen is None or row is chosen:
        return "the fastest within the limits"
    if row.p99_ms > chosen.p99_ms:
        return f"keeps the limits, and is slower: {row.p99_ms:.2f} ms, not {chosen.p99_ms:.2f}"
    if row.top1 < chosen.top1:
        return f"keeps the limits, is as fast, and has a top-1 of {row.top1:.2%}, not {chosen.top1:.2%}"
    return "keeps the limits, and is in nothing better"
