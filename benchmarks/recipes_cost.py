"""CPU time of recipes relative to the first one, from a few training steps of each, in turn in one process."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count, islice

import torch
from _results import about

from trt_cls.data.loader import TrainingBatch, TrainingLoader
from trt_cls.distributed.processes import ALONE
from trt_cls.spec.experiment import Experiment
from trt_cls.training.compute import choose_compute, memory_kept, repeatable
from trt_cls.training.learner import Learner
from trt_cls.training.logs.console import Reporter
from trt_cls.training.setup import make_model, open_setup, supported

STEPS = 8
"""Of a recipe in a round."""
RATE = 0.01
"""Learning rate; it does not change the time."""


class Steps:
    """Training steps of one recipe on its own batches, from decoding to the running mean of the weights."""

    def __init__(self, experiment: Experiment, stack: ExitStack) -> None:
        config, compute = supported(experiment, init_epoch=1, resume=False), choose_compute("cpu", "fp32")
        setup = open_setup(experiment, config, None, ALONE, compute)
        stack.callback(setup.close)
        self.epochs, self._number = config.n_epochs, count()
        self._batches = endless(setup.loader)
        model = make_model(setup, Reporter(io.StringIO()), resume=False)
        self._learner = Learner(model, config, compute, ALONE, setup.extensions)

    def milliseconds_per_image(self) -> float:
        images, started = 0, time.process_time()
        for batch in islice(self._batches, STEPS):
            self._learner.step(batch, next(self._number), RATE)
            images += len(batch.images)
        return 1000 * (time.process_time() - started) / images


def endless(loader: TrainingLoader) -> Iterator[TrainingBatch]:
    """The batches of one epoch after the other."""
    for epoch in count(1):
        for batch in loader.epoch(epoch):
            if not isinstance(batch, TrainingBatch):
                raise TypeError("packed batches, which only a GPU uses")
            yield batch


def cost_rows(recipes: Mapping[str, Experiment], rounds: int) -> list[dict[str, object]]:
    """A row for each recipe. The round before the first, in which memory is taken, is not counted."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        compute = choose_compute("cpu", "fp32")
        stack.enter_context(memory_kept(compute))
        stack.enter_context(repeatable(compute))
        steps = {name: Steps(experiment, stack) for name, experiment in recipes.items()}
        found = [{name: each.milliseconds_per_image() for name, each in steps.items()} for _ in range(rounds + 1)][1:]
    first, *_ = recipes
    origin = about(("torch",))
    rows: list[dict[str, object]] = []
    for name, each in steps.items():
        ratios = [times[name] / times[first] for times in found]
        relative = [each.epochs / steps[first].epochs * ratio for ratio in ratios]
        rows.append(
            {
                "recipe": name,
                "epochs": each.epochs,
                "rounds": rounds,
                "cpu_ms_per_image": f"{statistics.median(times[name] for times in found):.2f}",
                "relative_to_first": with_quartiles(ratios),
                "all_epochs_relative_to_first": with_quartiles(relative),
                "device": "cpu",
                "precision": "fp32",
                **origin,
            }
        )
    return rows


def with_quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
