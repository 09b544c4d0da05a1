"""What a spec field may hold: a check and its description in one object."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """The values a field may take; `describe` completes the sentence "expected …"."""

    describe: str
    accepts: Callable[[Any], bool]
    words: tuple[str, ...] = ()
    """The values, where they are words: what a did-you-mean chooses from."""
    is_enum: bool = False
    """Whether a spec writes the words without quotes."""


SMALLEST_SIDE, LARGEST_SIDE = 16, 8192
"""Height and width of what a network sees."""
MOST_PIXELS = 2**24
"""Height times width: 4096×4096, 200 MB an image in float32."""
SIZES = f"H and W integers from {SMALLEST_SIDE} to {LARGEST_SIDE}, H·W ≤ {MOST_PIXELS}"

ANYTHING = Allowed("", lambda value: True)


def finite(description: str = "a finite number") -> Allowed:
    """Finite numbers; a narrower range that `description` names depends on other fields (`rules.py`)."""
    return Allowed(description, math.isfinite)


def judged_with_others(description: str) -> Allowed:
    """Values that can only be judged together with other fields, in `rules.py`."""
    return Allowed(description, lambda value: True)


def at_least(low: int) -> Allowed:
    """Integers from `low` on."""
    return Allowed(f"an integer ≥ {low}", lambda value: value >= low)


def between(low: int, high: int) -> Allowed:
    """Integers from `low` to `high`."""
    return Allowed(f"an integer from {low} to {high}", lambda value: low <= value <= high)


def interval(low: float, high: float, brackets: str = "[]") -> Allowed:
    """Numbers between `low` and `high`; a round bracket leaves its end out, as in "[)"."""
    text = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"

    def accepts(value: float) -> bool:
        above = value > low or (value == low and brackets[0] == "[")
        below = value < high or (value == high and brackets[1] == "]")
        return above and below

    return Allowed(f"a number in {text}", accepts)


def above(low: float) -> Allowed:
    """Finite numbers greater than `low`."""
    return Allowed(f"a number > {low:g}", lambda value: value > low and math.isfinite(value))


def one_of(*values: str) -> Allowed:
    """One of a few words."""
    return Allowed("one of " + ", ".join(values), lambda value: value in values, values)


def enum(*values: str) -> Allowed:
    """One of a few words, written without quotes."""
    return replace(one_of(*values), is_enum=True)
