"""The training loop: epochs of steps, validation and files after each epoch, a stop that can be resumed at any step.

Several processes go through it in step; the first writes for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Batch, Skipped, stream
from trt_cls.errors import DataError, RequestError, TrtClsError
from trt_cls.spec.experiment import TrainConfig
from trt_cls.training.broken import BrokenImages
from trt_cls.training.distributed import Processes
from trt_cls.training.interrupt import Interrupted, StopRequest
from trt_cls.training.journal import Journal
from trt_cls.training.learner import Learner
from trt_cls.training.prefetch import prefetched
from trt_cls.training.records import EpochRow
from trt_cls.training.request import TrainingData
from trt_cls.training.results import Results
from trt_cls.training.saving import SavePoints
from trt_cls.training.schedules import schedule
from trt_cls.training.state import TrainState
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
        first_epoch: int,
        save_every: int | None,
        processes: Processes,
    ) -> None:
        self._config = config
        self._data = data
        self._learner = learner
        self._results = results
        self._request = request
        self._processes = processes
        self._rate = schedule(config.lr_config, processes.size)
        self._broken_train, self._broken_val = BrokenImages(data.train), BrokenImages(data.val)
        self._rows: list[EpochRow] = []
        self._epoch, self._step = first_epoch, 0
        """Where the training stands: in which epoch (from 1), after how many of its steps."""
        self._saves = SavePoints(results.state, save_every)
        self._stop = StopRequest(patient=processes.size > 1)

    @property
    def epoch(self) -> int:
        """The epoch, counted from 1, that comes next or goes on."""
        return self._epoch

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

    def run(self, journal: Journal | None, *, resumed: bool) -> TrainingResult:
        """Trains to the end; the first process has a journal."""
        if journal:
            journal.started(self._epoch, resumed=resumed)
        try:
            if not resumed:
                self._save_state()
            with self._stop:
                while self._epoch <= self._config.n_epochs:
                    self._run_epoch(journal)
        except BaseException as error:
            if journal:
                journal.failed(error)
            raise
        result = self._result()
        if journal:
            journal.done(result.best)
        return result

    def _run_epoch(self, journal: Journal | None) -> None:
        if journal:
            journal.epoch_started(self._epoch, self._data.loader.steps_per_epoch, self._step)
        self._train_epoch(journal)
        if journal:
            journal.steps_over()
        row = self._epoch_row()
        best = all(row.rank > earlier.rank for earlier in self._rows)
        self._rows.append(row)
        if journal:
            journal.epoch_done(self._rows, self._learner.model, best=best)
        self._epoch, self._step = self._epoch + 1, 0
        self._learner.start_epoch()
        self._save_state()  # last: after a crash the epoch is repeated, and writes the same files again

    def _train_epoch(self, journal: Journal | None) -> None:
        steps = self._data.loader.steps_per_epoch
        before = (self._epoch - 1) * steps
        first = self._step
        for batch in self._batches():
            self._save_or_stop()
            if journal and self._step == first:
                journal.first_batch(self._epoch, batch.images)
            self._broken_train.add(batch.skipped)
            number = before + self._step
            self._learner.step(batch, number, self._rate(number / (steps * self._config.n_epochs)))
            self._step += 1
            self._saves.step_done()
            if journal:
                journal.step_done(self._step, len(batch.images) * self._processes.size, self._learner.metrics)
        self._save_or_stop()

    def _batches(self) -> Iterator[TrainingBatch]:
        """What is left of the epoch."""
        if self._step == self._data.loader.steps_per_epoch:
            return
        try:
            yield from prefetched(self._data.loader.epoch(self._epoch, self._step), self._learner.compute)
        except RuntimeError:
            # Ctrl-C on a terminal reaches the loader's processes too: the step before is then the last
            if not self._stop.requested:
                raise

    def _epoch_row(self) -> EpochRow:
        training = self._learner.metrics_of_all()
        self._broken_train.share(self._processes)
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
            self._learner.model, self._validation_batches(), self._learner.compute, self._broken_val, self._processes
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
        """This process's share; each asks as often as the others whether to stop."""
        share = self._data.val.samples[self._processes.rank :: self._processes.size]
        longest = self._data.val.samples[:: self._processes.size]
        size = self._config.batch_size_per_gpu
        for batch in stream(share, self._data.contract.preprocessing, batch_size=size, workers=self._config.n_workers):
            self._save_or_stop()
            yield batch
        if math.ceil(len(share) / size) < math.ceil(len(longest) / size):
            self._save_or_stop()

    def _save_or_stop(self) -> None:
        """Saves the state where it is time or a signal came, and ends at a signal; all processes agree on both."""
        due = self._processes.first and self._saves.due()
        stop, save = self._processes.totals(self._stop.requested, due)
        if stop or save:
            self._save_state()
        if stop:
            raise Interrupted(
                f"interrupted; epoch {self._epoch}, step {self._step} of {self._data.loader.steps_per_epoch} is "
                f"saved; go on with: {self._results.resume_command(self._processes)}"
            )

    def _save_state(self) -> None:
        self._broken_train.share(self._processes)
        self._broken_val.share(self._processes)
        state = TrainState(
            request=self._request,
            epoch=self._epoch,
            step=self._step,
            learner=self._learner.state(),
            rows=tuple(self._rows),
            broken_train=self._broken_train.state(),
            broken_val=self._broken_val.state(),
        )
        if self._processes.first:
            self._saves.write(state)
        self._processes.wait()

    def _result(self) -> TrainingResult:
        return TrainingResult(
            results=self._results,
            last=self._results.checkpoint(self._data.contract.model.arch, self._config.n_epochs),
            rows=tuple(self._rows),
            best=max(self._rows, key=lambda row: row.rank),
            skipped=self._broken_train.images + self._broken_val.images,
            steps_left_out=self._learner.steps_left_out,
        )
