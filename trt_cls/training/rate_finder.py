"""The learning-rate finder: short trainings at growing rates, and the lowest of those whose loss ends near the lowest.

Each begins with the same weights, sees the same images, and goes through the schedule of the spec. Not the range test
of https://arxiv.org/abs/1506.01186, one training at a growing rate: it finds the rate at which first weights become
unstable, and a network with batch normalization learns at far higher ones once it has begun; with SGD a tenth of the
minimum was 4 to 75 times too low. Does not know: how a training is set up, see `run.find_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from statistics import fmean

from trt_cls.data.loader import TrainingBatch
from trt_cls.evaluation.report import contract_rows, page, path_text, version_rows
from trt_cls.files import write_text
from trt_cls.spec.experiment import LrConfig
from trt_cls.training.learner import Learner
from trt_cls.training.logs.page import HEIGHT, SPIKE, WIDTH, scale
from trt_cls.training.optimization import schedule, warm_up
from trt_cls.training.prefetch import prefetched
from trt_cls.training.setup import Setup

RATES = tuple(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 3))
"""Values of learning_rate, from 1e-5 to 30, half a power of ten apart."""
STEPS = (25, 100)
"""Of a training; more where none of these learns."""
WORSE = 2
"""Trainings in a row that end above the lowest loss, after which no larger rate is tried."""
LEARNED = 0.99
"""Below this share of the loss on the same images without learning, a training has learned."""
EARLY, CHANCE = 3, 0.9
"""Where batches are small, the loss falls by chance to this share of its mean over so many first steps."""
NEAR = 0.03
"""Losses within this share of the fall count as equal to the lowest; the lowest such rate is suggested."""


@dataclass(frozen=True)
class RateCurve:
    """Learning rates, and the loss at the end of a short training at each."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """The mean of the last third of the steps; infinite where it was not finite in one of them."""
    first: float
    """The loss of a network that has not learned."""
    steps: int
    """Of each training."""
    field: str
    """The spec's field for a learning rate."""

    @property
    def suggested(self) -> float | None:
        """A value for `field`; None: the loss falls at no rate."""
        lowest = min(self.losses)
        if not lowest < LEARNED * self.first:
            return None
        near = lowest + NEAR * (self.first - lowest)
        return next(rate for rate, loss in zip(self.rates, self.losses, strict=True) if loss <= near)

    @property
    def ends(self) -> bool:
        """Whether larger rates need not be tried."""
        last, lowest = min(self.losses[-WORSE:]), min(self.losses)
        return lowest < last and (self.suggested is not None or math.isinf(last))


def sweep(learner: Learner, setup: Setup) -> RateCurve:
    """Trains at growing rates; all processes call it, and get the same curve."""
    first = deepcopy(learner.state())
    config = setup.config.lr_config
    kind = next(kind.name for kind in fields(config) if getattr(config, kind.name) is not None)
    for steps in STEPS:
        curve = RateCurve((), (), math.nan, steps, f"train_config.lr_config.{kind}.learning_rate")
        for rate in RATES:
            learner.restore(first)
            chosen = replace(getattr(config, kind), learning_rate=rate)
            losses = _losses(learner, setup, replace(config, **{kind: chosen}), steps)
            end = fmean(losses[-(steps // 3) :]) if losses and math.isfinite(losses[-1]) else math.inf
            if not curve.rates:  # the lowest rate learns nothing, but with weights that are trained already
                start = fmean(losses[:EARLY] or [math.nan])
                curve = replace(curve, first=end if end > CHANCE * start else start)
            curve = replace(curve, rates=(*curve.rates, rate), losses=(*curve.losses, end))
            if curve.ends:
                break
        if curve.suggested is not None:
            break
    return curve


def _losses(learner: Learner, setup: Setup, config: LrConfig, steps: int) -> Sequence[float]:
    """Those of the steps of a training; it ends where one is not finite."""
    follow, group = schedule(config, setup.processes.size), setup.extensions.accumulate_steps
    planned = math.ceil(setup.loader.steps_per_epoch / group) * setup.config.n_epochs
    warming = round(steps * min(1.0, setup.extensions.warm_up_steps / planned))
    losses: list[float] = []
    with closing(_batches(setup)) as batches:
        for step in range(steps):
            learner.start_epoch()
            rate = warm_up(step, warming) * follow(step / steps)
            size = setup.image_size(step / steps)
            for part in range(group):
                learner.step(next(batches), step * group + part, rate, size=size, ends_group=part + 1 == group)
            found = learner.metrics_of_all()
            if found.images:
                losses.append(found.loss)
            if losses and not math.isfinite(losses[-1]):
                break
    return losses


def _batches(setup: Setup) -> Generator[TrainingBatch]:
    """Those of all epochs, one after the other."""
    for epoch in count(1):
        yield from prefetched(setup.loader.epoch(epoch), setup.compute, setup.kernel)


def write_page(path: Path, curve: RateCurve, setup: Setup) -> None:
    """Writes training.html with the curve."""
    suggested = curve.suggested
    text = page(
        "learning_rate.html",
        title=path_text(path.parent),
        steps=curve.steps,
        trainings=len(curve.rates),
        suggested=f"{suggested:g}" if suggested else "",
        chart=_chart(curve),
        contract=contract_rows(setup.contract),
        versions=version_rows(),
    )
    write_text(path, text)


def _chart(curve: RateCurve) -> dict[str, object]:
    """A plot for the template, with a logarithmic scale of rates."""
    first, last = (math.log10(curve.rates[end]) for end in (0, -1))
    top, ticks = scale(SPIKE / 2 * (curve.first if math.isfinite(curve.first) else 1.0))

    def x(rate: float) -> float:
        return WIDTH * (math.log10(rate) - first) / ((last - first) or 1.0)

    dots = [
        (x(rate), HEIGHT * (1 - min(loss / top, 1)), f"{rate:g}: {loss:.4g}")
        for rate, loss in zip(curve.rates, curve.losses, strict=True)
    ]
    line = {
        "name": "last third of the steps",
        "points": " ".join(f"{left:.1f},{down:.1f}" for left, down, _ in dots),
        "dots": dots,
        "value": f"{min(curve.losses):.4g}",
    }
    return {
        "title": "Loss",
        "curves": [line],
        "ticks": ticks,
        "across": [(x(10.0**power), f"1e{power}") for power in range(round(first), math.floor(last + 1e-9) + 1)],
        "best": x(curve.suggested or curve.rates[0]),
    }
