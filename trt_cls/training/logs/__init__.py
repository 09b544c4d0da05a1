"""All that a training writes down and says, but for its state; silent in every process but the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from trt_cls.contract import Contract
from trt_cls.errors import TrtClsError
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.spec.experiment import TrainConfig
from trt_cls.training.checkpointing import room_for
from trt_cls.training.learner import Metrics
from trt_cls.training.logs.console import Reporter
from trt_cls.training.logs.files import Averaged, EpochRow, StatusFile, epochs_without_gain, write_curve
from trt_cls.training.logs.trackers import Events, Loggers
from trt_cls.training.run_folder import Results

TEXT_SIZE = 100_000
"""Bytes, about, that an epoch adds to curves and logs."""


class Journal:
    """The records of one run of a training, from `first_epoch` on."""

    def __init__(
        self,
        results: Results,
        config: TrainConfig,
        contract: Contract,
        reporter: Reporter,
        loggers: Loggers,
        first_epoch: int,
    ) -> None:
        self._results = results
        self._n_epochs = config.n_epochs
        self._contract = contract
        self._reporter, self._loggers = reporter, loggers
        self._status = StatusFile(results.status, first_epoch)
        self._events = Events(results.events, config.visualizer, contract.preprocessing, first_epoch)
        self._started = time.monotonic()

    def started(self, epoch: int, *, resumed: bool) -> None:
        """The training begins, or goes on in `epoch`."""
        self._status.write("STARTED", f"training goes on at epoch {epoch}" if resumed else "training started")

    def epoch_started(self, epoch: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps begins, or goes on after `done` of them."""
        self._started = time.monotonic()
        self._reporter.epoch_started(epoch, self._n_epochs, steps, done)

    def first_batch(self, epoch: int, images: Tensor) -> None:
        """The first batch of the epoch in this run."""
        self._events.images(epoch, images)

    def step_done(self, step: int, images: int, metrics: Callable[[], Metrics]) -> None:
        """Step `step` (counted from 1) of the epoch is done; `images` were learnt from."""
        self._reporter.step_done(step, images, metrics)

    def steps_over(self) -> None:
        """The steps of the epoch are over."""
        self._reporter.epoch_stopped()

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool) -> None:
        """Writes the epoch of the last row: its checkpoint, also as the best if it is, then curve and logs.

        Raises:
            TrtClsError: the disk is full.
        """
        row = rows[-1]
        self._save(self._results.checkpoint(self._contract.model.arch, row.epoch), model)
        if best:
            self._save(self._results.best, model)
        seconds = time.monotonic() - self._started
        with room_for(self._results.curve, TEXT_SIZE):
            write_curve(self._results.curve, rows)
        with room_for(self._results.status, TEXT_SIZE):
            self._status.epoch(row, self._n_epochs, seconds)
        with room_for(self._results.events, TEXT_SIZE):
            self._events.epoch(row, model)
        self._loggers.epoch(row)
        self._reporter.epoch_done(row, seconds, seconds * (self._n_epochs - row.epoch), best)

    def failed(self, error: BaseException) -> None:
        """The training ends by `error`, which may be a full disk."""
        self._reporter.epoch_stopped()
        with suppress(OSError, TrtClsError):
            self._status.write("FAILURE", str(error) or type(error).__name__)
        with suppress(OSError, TrtClsError):
            self._events.close()
        self._loggers.end((), success=False)

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """Writes the mean of checkpoints.

        Raises:
            TrtClsError: the disk is full.
        """
        self._save(averaged.path, model)
        kpi = {"validation_loss": averaged.val_loss, "validation_accuracy": averaged.val_acc}
        self._status.write("RUNNING", str(averaged), epoch=averaged.last_epoch, kpi=kpi)
        self._reporter.line(str(averaged))

    def done(self, rows: Sequence[EpochRow], best: EpochRow) -> None:
        """The training is over; `rows` are all of its epochs."""
        kpi = {"validation_loss": best.val_loss, "validation_accuracy": best.val_acc}
        done = "training done"
        if rows[-1].epoch < self._n_epochs:
            waited = f"{epochs_without_gain(rows)} without a higher val_acc"
            done = f"training stopped early, after epoch {rows[-1].epoch} of {self._n_epochs}, {waited}"
            self._reporter.line(done)
        self._status.write("SUCCESS", f"{done}; the best epoch is {best.epoch}", kpi=kpi)
        self._events.close()
        files = self._results
        self._loggers.end((files.curve, files.classmap, files.best, files.averaged), success=True)

    def _save(self, path: Path, model: nn.Module) -> None:
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        with room_for(path, size):
            save_checkpoint(path, model, self._contract)
