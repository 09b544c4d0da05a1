"""timm's optimizers, as references."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature

import pytest
import torch

Kind = Callable[..., torch.optim.Optimizer]


def of_timm(name: str) -> Kind:
    """The optimizer that takes one weight after the other."""
    kind: Kind = getattr(pytest.importorskip("timm.optim"), name)
    return partial(kind, foreach=False) if takes_all_at_once(kind) else kind


def takes_all_at_once(kind: Kind) -> bool:
    """Whether it has another way too; the Lamb of timm before 1.0.31 has none, and rounds otherwise."""
    return "foreach" in signature(kind).parameters
