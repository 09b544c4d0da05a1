"""Bounds that follow from the rounding of float32 itself, so that they hold on every processor."""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 8
"""Two float32 computations of the same numbers, in another order of sums, were up to 3 times as far from float64 as
each other; a fault moves them by a thousand times as much."""


def assert_rounds_like(found: Tensor, float32: Tensor, float64: Tensor, name: str = "") -> None:
    """`found` is as near to `float64` as the reference in `float32` is, within `FACTOR`, or to a last bit."""
    own, allowed = (float((values.double() - float64).abs().max()) for values in (found, float32))
    last_bit = torch.finfo(torch.float32).eps * float(float64.abs().max())
    assert own <= FACTOR * max(allowed, last_bit), f"{name}: {own:.2g} from float64, the reference {allowed:.2g}"
