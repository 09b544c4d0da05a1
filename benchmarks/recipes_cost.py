"""CPU time of recipes relative to the first one, from a few steps of each, in turn in one process.

The steps are spread evenly over the training, whose images may grow; an epoch ends with a validation.
"""

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
from trt_cls.data.stream import stream
from trt_cls.distributed.processes import ALONE
from trt_cls.spec.experiment import Experiment
from trt_cls.training.compute import Compute, choose_compute, memory_kept, repeatable
from trt_cls.training.learner import Learner
from trt_cls.training.logs.console import Reporter
from trt_cls.training.setup import make_model, open_setup, supported
from trt_cls.training.validation import BrokenImages, validate

TRAINED = 2048
"""Images of a recipe in a round: eight batches of 256, so that each size has its share of the training."""
VALIDATED = 256
"""Images that a round validates."""
RATE = 0.01
"""Learning rate; it does not change the time."""


class Epochs:
    """Epochs of one recipe on its own images, from decoding to the running mean of the weights, and validation."""

    def __init__(self, experiment: Experiment, compute: Compute, stack: ExitStack) -> None:
        config = supported(experiment, init_epoch=1, resume=False)
        self._setup = open_setup(experiment, config, None, ALONE, compute)
        stack.callback(self._setup.close)
        self.number, self._batch_size, self._steps = config.n_epochs, config.batch_size_per_gpu, count()
        self._batches = endless(self._setup.loader)
        model = make_model(self._setup, Reporter(io.StringIO()), resume=False)
        self._learner = Learner(model, config, compute, ALONE, self._setup.extensions)

    def seconds(self) -> float:
        """CPU seconds of an epoch, from a part of it."""
        started, images, steps = time.process_time(), 0, TRAINED // self._batch_size
        for step, batch in enumerate(islice(self._batches, steps)):
            self._learner.step(batch, next(self._steps), RATE, size=self._setup.image_size((step + 0.5) / steps))
            images += len(batch.images)
        trained = (time.process_time() - started) / images * len(self._setup.train.samples)
        started, samples = time.process_time(), self._setup.val.samples[:VALIDATED]
        batches = stream(samples, self._setup.contract.preprocessing, batch_size=64, workers=0)
        validate(self._learner.result, batches, self._setup.compute, BrokenImages(self._setup.val), ALONE)
        return trained + (time.process_time() - started) / len(samples) * len(self._setup.val.samples)


def endless(loader: TrainingLoader) -> Iterator[TrainingBatch]:
    """The batches of one epoch after the other."""
    for epoch in count(1):
        for batch in loader.epoch(epoch):
            if not isinstance(batch, TrainingBatch):
                raise TypeError("packed batches, which only a GPU uses")
            yield batch


def cost_rows(recipes: Mapping[str, Experiment], rounds: int, precision: str) -> list[dict[str, object]]:
    """A row for each recipe. The round before the first, in which memory is taken, is not counted."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        compute = choose_compute("cpu", precision)
        stack.enter_context(memory_kept(compute))
        stack.enter_context(repeatable(compute))
        epochs = {name: Epochs(experiment, compute, stack) for name, experiment in recipes.items()}
        found = [{name: each.seconds() for name, each in epochs.items()} for _ in range(rounds + 1)][1:]
    first, *_ = recipes
    origin = about(("torch",))
    rows: list[dict[str, object]] = []
    for name, each in epochs.items():
        ratios = [times[name] / times[first] for times in found]
        relative = [each.number / epochs[first].number * ratio for ratio in ratios]
        rows.append(
            {
                "recipe": name,
                "epochs": each.number,
                "rounds": rounds,
                "cpu_seconds_per_epoch": f"{statistics.median(times[name] for times in found):.1f}",
                "relative_to_first": with_quartiles(ratios),
                "all_epochs_relative_to_first": with_quartiles(relative),
                "device": "cpu",
                "precision": precision,
                **origin,
            }
        )
    return rows


def with_quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
