"""Learning rates as documented: pure functions of the training's progress.

Progress is the share of the whole training that lies behind a step, step / (steps per epoch · epochs): the first step
has progress 0 and none has progress 1. Nothing here knows about optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trt_cls.spec.experiment import CosineLr, LrConfig, SoftAnnealLr, StepLr

Schedule = Callable[[float], float]
"""Progress in [0, 1] → learning rate."""

WARM_UP_START = 3e-4
"""Where soft_anneal's warm-up begins, unless learning_rate is smaller."""

ROUNDING = 1e-9
"""0.29 · 100 / 29 is 0.9999999999999999 in floating point, and is meant to be one whole drop."""


def schedule(config: LrConfig, world_size: int = 1) -> Schedule:
    """The schedule that is set in `config`; its highest rate is learning_rate · world_size."""
    if config.step is not None:
        return _step(config.step, world_size)
    if config.soft_anneal is not None:
        return _soft_anneal(config.soft_anneal, world_size)
    if config.cosine is not None:
        return _cosine(config.cosine, world_size)
    raise ValueError("lr_config is empty")


def _step(config: StepLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size

    def rate(progress: float) -> float:
        drops = math.floor(progress * 100 / config.step_size + ROUNDING)
        return base * config.gamma**drops

    return rate


def _soft_anneal(config: SoftAnnealLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size
    start = min(WARM_UP_START, config.learning_rate)

    def rate(progress: float) -> float:
        if progress < config.soft_start:
            return start + (base - start) * progress / config.soft_start
        passed = sum(progress > point for point in config.annealing_points)
        return base / config.annealing_divider**passed

    return rate


def _cosine(config: CosineLr, world_size: int) -> Schedule:
    base = config.learning_rate * world_size
    lowest = base * config.min_lr_ratio

    def rate(progress: float) -> float:
        if progress < config.soft_start:
            return lowest + (base - lowest) * progress / config.soft_start
        share = (progress - config.soft_start) / (1 - config.soft_start)
        return lowest + (base - lowest) * (1 + math.cos(math.pi * share)) / 2

    return rate
