"""How the fields of a spec are declared: default, help and allowed values; blocks of which exactly one field is set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """The values a field may take; `describe` completes the sentence "expected …"."""

    describe: str
    accepts: Callable[[Any], bool]
    words: tuple[str, ...] = ()
    """The values, if they are words: the candidates of "did you mean"."""
    is_enum: bool = False
    """Whether a spec writes the words without quotes."""


SMALLEST_SIDE, LARGEST_SIDE = 16, 8192
"""Limits of a network's input height and width."""
MOST_PIXELS = 2**24
"""Limit of height × width: 4096×4096, 200 MB per image in float32."""
SIZES = f"H and W integers from {SMALLEST_SIDE} to {LARGEST_SIDE}, H·W ≤ {MOST_PIXELS}"

ANYTHING = Allowed("", lambda value: True)


def finite(description: str = "a finite number") -> Allowed:
    """Finite numbers; `description` may name a narrower range that `rules.py` checks."""
    return Allowed(description, math.isfinite)


def checked_by_rules(description: str) -> Allowed:
    """Values that `rules.py` checks together with other fields."""
    return Allowed(description, lambda value: True)


def at_least(low: int) -> Allowed:
    """Integers ≥ `low`."""
    return Allowed(f"an integer ≥ {low}", lambda value: value >= low)


def between(low: int, high: int) -> Allowed:
    """Integers from `low` to `high`."""
    return Allowed(f"an integer from {low} to {high}", lambda value: low <= value <= high)


def interval(low: float, high: float, brackets: str = "[]") -> Allowed:
    """Numbers between `low` and `high`; a round bracket excludes its end, as in "[)"."""
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


def option(default: Any, description: str, allowed: Allowed = ANYTHING, *, secret: bool = False) -> Any:
    """A field with a default; a callable default is a factory.

    The value of a `secret` field is neither shown in messages nor written to a results folder.
    """
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    if default is MISSING:
        given = {}
    return field(**given, repr=not secret, metadata={"help": description, "allowed": allowed, "secret": secret})


def required(description: str, allowed: Allowed = ANYTHING) -> Any:
    """A field that the spec must give."""
    return option(MISSING, description, allowed)


class ExactlyOne:
    """Base of the blocks of which a spec sets exactly one field."""
