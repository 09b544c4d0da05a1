"""The learning-rate finder: a short training whose rate grows from step to step, until the loss diverges.

As in https://arxiv.org/abs/1506.01186; the suggestion is a tenth of the rate at which the smoothed loss is lowest. Does
not know: how a training is set up, see `run.find_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path

from trt_cls.data.loader import TrainingBatch
from trt_cls.evaluation.report import contract_rows, page, path_text, version_rows
from trt_cls.files import write_text
from trt_cls.training.learner import Learner
from trt_cls.training.logs.page import HEIGHT, SPIKE, WIDTH, scale
from trt_cls.training.prefetch import prefetched
from trt_cls.training.setup import Setup

FIRST, LAST, STEPS = 1e-6, 10.0, 100
"""Rates of the first and the last step; 14 steps for each power of ten."""
KEPT = 0.9
"""Share of the running mean of losses that a step keeps."""
DIVERGED = 4.0
"""A running mean that is so many times the lowest ends the search."""
LEARNED = 0.98
"""Below this share of its first value the loss has fallen by more than chance."""


@dataclass(frozen=True)
class RateCurve:
    """Learning rates, the losses of the steps at them, and the running mean of the losses."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    means: tuple[float, ...]
    processes: int
    """Their number, by which the schedule multiplies learning_rate."""
    field: str
    """The spec's field for a learning rate."""

    @property
    def suggested(self) -> float | None:
        """A value for `field`; None: the loss falls at no rate."""
        if not self.means or min(self.means) > LEARNED * self.means[0]:
            return None
        return float(f"{self.rates[self.means.index(min(self.means))] / 10 / self.processes:.2g}")


def sweep(learner: Learner, setup: Setup) -> RateCurve:
    """Trains at growing rates; all processes call it, and get the same curve."""
    rates: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    group, mean, number = setup.extensions.accumulate_steps, 0.0, 0
    batches = _batches(setup)
    for step in range(STEPS):
        rate = FIRST * (LAST / FIRST) ** (step / (STEPS - 1))
        learner.start_epoch()
        for part in range(group):
            learner.step(next(batches), number, rate, ends_group=part + 1 == group)
            number += 1
        found = learner.metrics_of_all()
        if not found.images:
            continue
        if not math.isfinite(found.loss):
            break
        mean = KEPT * mean + (1 - KEPT) * found.loss
        rates.append(rate)
        losses.append(found.loss)
        means.append(mean / (1 - KEPT ** len(rates)))  # without the zero that it began with
        if means[-1] > DIVERGED * min(means):
            break
    config = setup.config.lr_config
    schedule = next(kind.name for kind in fields(config) if getattr(config, kind.name) is not None)
    field = f"train_config.lr_config.{schedule}.learning_rate"
    return RateCurve(tuple(rates), tuple(losses), tuple(means), setup.processes.size, field)


def _batches(setup: Setup) -> Iterator[TrainingBatch]:
    """Those of all epochs, one after the other."""
    for epoch in count(1):
        yield from prefetched(setup.loader.epoch(epoch), setup.compute, setup.kernel)


def write_page(path: Path, curve: RateCurve, setup: Setup) -> None:
    """Writes training.html with the curve."""
    suggested = curve.suggested
    text = page(
        "learning_rate.html",
        title=path_text(path.parent),
        steps=len(curve.rates),
        suggested=f"{suggested:g}" if suggested else "",
        chart=_chart(curve),
        contract=contract_rows(setup.contract),
        versions=version_rows(),
    )
    write_text(path, text)


def _chart(curve: RateCurve) -> dict[str, object]:
    """A plot for the template, with a logarithmic scale of rates."""
    first, last = math.log10(FIRST), math.log10(LAST)
    top, ticks = scale(SPIKE / 2 * max(curve.means[:1], default=1.0))

    def x(rate: float) -> float:
        return WIDTH * (math.log10(rate) - first) / (last - first)

    def line(name: str, values: tuple[float, ...]) -> dict[str, object]:
        places = [
            (x(rate), HEIGHT * (1 - min(value / top, 1))) for rate, value in zip(curve.rates, values, strict=True)
        ]
        texts = (f"{rate:.2g}: {value:.4g}" for rate, value in zip(curve.rates, values, strict=True))
        return {
            "name": name,
            "points": " ".join(f"{left:.1f},{down:.1f}" for left, down in places),
            "dots": [(left, down, text) for (left, down), text in zip(places, texts, strict=True)],
            "value": f"{min(values, default=math.nan):.4g}",
        }

    best = curve.suggested or FIRST
    return {
        "title": "Loss",
        "curves": [line("step", curve.losses), line("mean", curve.means)],
        "ticks": ticks,
        "across": [(x(10.0**power), f"1e{power}") for power in range(round(first), round(last) + 1, 2)],
        "best": x(best * curve.processes),
    }
