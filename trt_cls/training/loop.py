"""The training loop: epochs of steps, validation and files after each epoch, a stop that can be resumed at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Batch, Skipped, stream
from trt_cls.errors import DataError, RequestError, TrtClsError
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.spec.experiment import TrainConfig
from trt_cls.training.broken import BrokenImages
from trt_cls.training.events import Events
from trt_cls.training.interrupt import Interrupted, StopRequest
from trt_cls.training.learner import Learner
from trt_cls.training.records import EpochRow, StatusFile, write_curve
from trt_cls.training.reporter import Reporter
from trt_cls.training.request import TrainingData
from trt_cls.training.results import Results
from trt_cls.training.schedules import schedule
from trt_cls.training.state import TrainState, write_state
from trt_cls.training.validation import validate


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training left behind."""

    results: Results
    last: Path
    """The checkpoint of the last epoch."""
    rows: tuple[EpochRow, ...]
    best: EpochRow
    skipped: tuple[Skipped, ...]
    """Broken images of both folders, each once."""
    steps_left_out: int
    """Steps without enough whole images to learn from."""


class Training:
    """One training from its first step, or the one it is restored to, to its end."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        learner: Learner,
        results: Results,
        request: dict[str, Any],
        reporter: Reporter,
        first_epoch: int,
    ) -> None:
        self._config = config
        self._data = data
        self._learner = learner
        self._results = results
        self._request = request
        self._reporter = reporter
        self._rate = schedule(config.lr_config)
        self._broken_train, self._broken_val = BrokenImages(data.train), BrokenImages(data.val)
        self._rows: list[EpochRow] = []
        self._epoch, self._step = first_epoch, 0
        """Where the training stands: in which epoch (from 1), after how many of its steps."""
        self._stop = StopRequest()

    def restore(self, state: TrainState) -> None:
        """Goes to where `state` was saved.

        Raises:
            RequestError: all epochs are done.
        """
        if state.epoch > self._config.n_epochs:
            raise RequestError(
                f"{self._results.root}: all {self._config.n_epochs} epochs are done, nothing to resume; "
                f"use the model: trt-cls export -m {self._results.best}"
            )
        self._learner.restore(state.learner)
        self._rows = list(state.rows)
        self._epoch, self._step = state.epoch, state.step
        self._broken_train.restore(state.broken_train)
        self._broken_val.restore(state.broken_val)

    def run(self, *, resumed: bool) -> TrainingResult:
        """Trains to the end."""
        status = StatusFile(self._results.status, keep=resumed)
        events = Events(
            self._results.events, self._config.visualizer, self._data.contract.preprocessing, first_epoch=self._epoch
        )
        status.write("STARTED", f"training goes on at epoch {self._epoch}" if resumed else "training started")
        try:
            with self._stop:
                while self._epoch <= self._config.n_epochs:
                    self._run_epoch(status, events)
        except BaseException as error:
            status.write("FAILURE", str(error) or type(error).__name__)
            raise
        finally:
            self._reporter.epoch_stopped()
            events.close()
        result = self._result()
        kpi = {"validation_loss": result.best.val_loss, "validation_accuracy": result.best.val_acc}
        status.write("SUCCESS", f"training done; the best epoch is {result.best.epoch}", kpi=kpi)
        return result

    def _run_epoch(self, status: StatusFile, events: Events) -> None:
        started = time.monotonic()
        epoch, n_epochs = self._epoch, self._config.n_epochs
        self._train_epoch(events)
        row = self._epoch_row()
        best = all(row.rank > earlier.rank for earlier in self._rows)
        self._rows.append(row)
        self._save_models(epoch, best)
        write_curve(self._results.curve, self._rows)
        seconds = time.monotonic() - started
        status.epoch(row, n_epochs, seconds)
        events.epoch(row, self._learner.model)
        self._reporter.epoch_done(row, seconds, seconds * (n_epochs - epoch), best)
        self._epoch, self._step = epoch + 1, 0
        self._learner.start_epoch()
        self._save_state()  # last: after a crash the epoch is repeated, and writes the same files again
        self._stop_if_asked()

    def _train_epoch(self, events: Events) -> None:
        steps = self._data.loader.steps_per_epoch
        before = (self._epoch - 1) * steps
        self._reporter.epoch_started(self._epoch, self._config.n_epochs, steps, self._step)
        for batch in self._batches():
            if self._step == 0:
                events.images(self._epoch, batch.images)
            self._broken_train.add(batch.skipped)
            number = before + self._step
            self._learner.step(batch, number, self._rate(number / (steps * self._config.n_epochs)))
            self._step += 1
            self._reporter.step_done(self._step, len(batch.images), self._learner.metrics)
            self._stop_if_asked()
        self._stop_if_asked()
        self._reporter.epoch_stopped()

    def _batches(self) -> Iterator[TrainingBatch]:
        """What is left of the epoch."""
        if self._step == self._data.loader.steps_per_epoch:
            return
        try:
            yield from self._data.loader.epoch(self._epoch, self._step)
        except RuntimeError:
            # Ctrl-C on a terminal reaches the loader's processes too: the step before is then the last
            if not self._stop.requested:
                raise

    def _epoch_row(self) -> EpochRow:
        training = self._learner.metrics()
        if not training.images:
            raise DataError(
                f"{self._data.train.root}: epoch {self._epoch} had no batch to learn from; "
                "expected two readable images at least; add images"
            )
        if not math.isfinite(training.loss):
            raise TrtClsError(
                f"epoch {self._epoch}: the training loss is {training.loss}; expected a finite number; lower the "
                "learning_rate of train_config.lr_config and train anew in another folder"
            )
        accuracy, loss = validate(
            self._learner.model, self._validation_batches(), self._learner.compute, self._broken_val
        )
        steps = self._data.loader.steps_per_epoch
        return EpochRow(
            epoch=self._epoch,
            acc=training.accuracy,
            loss=training.loss,
            lr=self._rate((self._epoch * steps - 1) / (self._config.n_epochs * steps)),
            val_acc=accuracy,
            val_loss=loss + self._learner.penalty.value().item(),
        )

    def _validation_batches(self) -> Iterator[Batch]:
        for batch in stream(
            self._data.val.samples,
            self._data.contract.preprocessing,
            batch_size=self._config.batch_size_per_gpu,
            workers=self._config.n_workers,
        ):
            self._stop_if_asked()
            yield batch

    def _save_models(self, epoch: int, best: bool) -> None:
        contract = self._data.contract
        path = self._results.checkpoint(contract.model.arch, epoch)
        save_checkpoint(path, self._learner.model, contract)
        if best:
            save_checkpoint(self._results.best, self._learner.model, contract)

    def _save_state(self) -> None:
        state = TrainState(
            request=self._request,
            epoch=self._epoch,
            step=self._step,
            learner=self._learner.state(),
            rows=tuple(self._rows),
            broken_train=self._broken_train.state(),
            broken_val=self._broken_val.state(),
        )
        write_state(self._results.state, state)

    def _stop_if_asked(self) -> None:
        if not self._stop.requested or self._epoch > self._config.n_epochs:
            return
        self._save_state()
        raise Interrupted(
            f"interrupted; epoch {self._epoch}, step {self._step} of {self._data.loader.steps_per_epoch} is saved; "
            f"go on with: {self._results.resume_command}"
        )

    def _result(self) -> TrainingResult:
        return TrainingResult(
            results=self._results,
            last=self._results.checkpoint(self._data.contract.model.arch, self._config.n_epochs),
            rows=tuple(self._rows),
            best=max(self._rows, key=lambda row: row.rank),
            skipped=self._broken_train.images + self._broken_val.images,
            steps_left_out=self._learner.steps_left_out,
        )
