"""Logs of a training: checkpoints, training.csv, status.json, TensorBoard, experiment trackers and the console.

Each is a `Log`; a training has a list of them, which is empty in all processes but the first. Does not know: the state
for --resume. Begin with `Log`, the events of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from trt_cls.training.learner import Metrics


@dataclass(frozen=True)
class EpochRow:
    """One epoch, counted from 1; losses include the penalty on weights."""

    epoch: int
    acc: float
    """Training accuracy while the weights changed, against the label with the larger share of a mixed image."""
    loss: float
    lr: float
    """Of the epoch's last step."""
    val_acc: float
    val_loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: validation accuracy, then a lower validation loss."""
        return self.val_acc, -self.val_loss


@dataclass(frozen=True)
class Averaged:
    """The mean of the checkpoints of several epochs, and its validation; the loss includes the penalty."""

    path: Path
    first_epoch: int
    last_epoch: int
    val_acc: float
    val_loss: float

    def __str__(self) -> str:
        epochs = f"mean of epochs {self.first_epoch} to {self.last_epoch}"
        return f"{epochs}: val_acc {self.val_acc:.4f}, val_loss {self.val_loss:.4f}"


def epochs_without_gain(rows: Sequence[EpochRow]) -> int:
    """How many epochs at the end have not raised val_acc above all before."""
    return rows[-1].epoch - max(rows, key=lambda row: row.val_acc).epoch if rows else 0


def ending(rows: Sequence[EpochRow], n_epochs: int) -> str:
    """How a training that is over came to its end."""
    if rows[-1].epoch == n_epochs:
        return "training done"
    waited = f"{epochs_without_gain(rows)} without a higher val_acc"
    return f"training stopped early, after epoch {rows[-1].epoch} of {n_epochs}, {waited}"


class Log:
    """One log of a training; a subclass overrides the events that it records."""

    def started(self, epoch: int, *, resumed: bool) -> None:
        """The training starts, or resumes in `epoch`."""

    def epoch_started(self, epoch: int, n_epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps starts, or resumes after `done` of them."""

    def first_batch(self, epoch: int, images: Tensor) -> None:
        """The first batch of the epoch in this run, images [n,C,H,W]."""

    def step_done(self, step: int, images: int, metrics: Callable[[], Metrics]) -> None:
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

    def done(self, rows: Sequence[EpochRow], best: EpochRow) -> None:
        """The training is over; `rows` are all of its epochs."""
