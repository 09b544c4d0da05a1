"""Logs of a training: checkpoints, training.csv, status.json, TensorBoard, experiment trackers and the console.

Each is a `Log`; a training has a list of them, which is empty in all processes but the first. Does not know: the state
for --resume. Begin with `Log`, the events of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from trt_cls.data.loader import TrainingBatch
from trt_cls.training.learner import EpochMeans

METRICS = {
    "top_1": "val_acc", "loss": "val_loss", "balanced_accuracy": "val_balanced_accuracy", "macro_f1": "val_macro_f1",
    "mAP": "val_map",
}  # fmt: skip
"""Values of extensions.best_metric: the field of `EpochRow` that they compare."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch, counted from 1; losses are cross-entropies, without the penalty on weights.

    Of multi-label training, accuracies are shares of images with all labels right.
    """

    epoch: int
    acc: float
    """Training accuracy while the weights changed, against the label with the larger share of a mixed image."""
    loss: float
    lr: float
    """Of the epoch's last step."""
    val_acc: float
    val_loss: float
    """Without label smoothing."""
    penalty: float = 0.0
    """On weights, the mean over the epoch; TAO adds it to the loss."""
    val_penalty: float = 0.0
    """Of the network that is validated; TAO adds it to the validation loss."""
    val_balanced_accuracy: float = 0.0
    val_macro_f1: float = 0.0
    recalls: tuple[float, ...] = ()
    """Of each class, in validation."""
    one_answer: str = ""
    """A sentence if the validated network gives one class for everything."""
    val_map: float = 0.0
    """Mean average precision, of multi-label training alone."""
    thresholds: tuple[float, ...] = ()
    """Of each class, in multi-label training alone."""

    @property
    def figures(self) -> dict[str, float]:
        """The columns of training.csv."""
        left_out = {"recalls", "one_answer", "thresholds", "val_balanced_accuracy" if self.thresholds else "val_map"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}

    def __str__(self) -> str:
        average = f"val_map {self.val_map:.4f}, " if self.thresholds else ""
        return f"{average}val_acc {self.val_acc:.4f}, val_loss {self.val_loss:.4f}"

    def score(self, metric: str) -> float:
        """Greater is better; `metric` is one of METRICS."""
        value: float = getattr(self, METRICS[metric])
        return -value if metric == "loss" else value

    def rank(self, metric: str) -> tuple[float, float]:
        """Greater is better: the metric, then a lower validation loss."""
        return self.score(metric), -self.val_loss


@dataclass(frozen=True)
class Averaged:
    """The mean of the checkpoints of several epochs, and its validation as the last epoch's row."""

    path: Path
    first_epoch: int
    row: EpochRow

    def __str__(self) -> str:
        epochs = f"mean of epochs {self.first_epoch} to {self.row.epoch}"
        return f"{epochs}: {self.row}"


def epochs_without_gain(rows: Sequence[EpochRow], metric: str) -> int:
    """How many epochs at the end have not raised the score above all before."""
    return rows[-1].epoch - max(rows, key=lambda row: row.score(metric)).epoch if rows else 0


def ending(rows: Sequence[EpochRow], n_epochs: int, metric: str) -> str:
    """How a training that is over came to its end."""
    if rows[-1].epoch == n_epochs:
        return "training done"
    waited = f"{epochs_without_gain(rows, metric)} without a better {METRICS[metric]}"
    return f"training stopped early, after epoch {rows[-1].epoch} of {n_epochs}, {waited}"


class Log:
    """One log of a training; a subclass overrides the events that it records."""

    def started(self, epoch: int, *, resumed: bool) -> None:
        """The training starts, or resumes in `epoch`."""

    def epoch_started(self, epoch: int, n_epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps starts, or resumes after `done` of them."""

    def first_batch(self, epoch: int, batch: TrainingBatch) -> None:
        """The first batch of the epoch in this run."""

    def step_done(self, step: int, images: int, metrics: Callable[[], EpochMeans]) -> None:
        """Step `step` (counted from 1) of the epoch, with `images` images, is done; `metrics` waits for the GPU."""

    def epoch_stopped(self) -> None:
        """The steps of the epoch are over."""

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """The epoch of the last row is trained and validated; `best`: better than all before.

        Raises:
            TrtClsError: the disk is full.
        """

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """The mean of checkpoints is made and validated.

        Raises:
            TrtClsError: the disk is full.
        """

    def failed(self, error: BaseException) -> None:
        """The training ends by `error`, which may be a full disk."""

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """The training is over; `rows` are all of its epochs, `ended` is the reason why it ended."""
