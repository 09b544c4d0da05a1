"""The training loop: epochs of steps, validation and files after each epoch, a stop that can be resumed at any step.

Several processes go through it in step; the first writes for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Batch, Skipped, stream
from trt_cls.data.workers import LoaderError
from trt_cls.distributed.processes import Processes
from trt_cls.errors import DataError, RequestError, TrtClsError
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import Extensions, TrainConfig
from trt_cls.training.averaging import mean_of, renew_statistics
from trt_cls.training.checkpointing import Interrupted, SavePoints, StopRequest
from trt_cls.training.learner import Learner
from trt_cls.training.logs import Journal
from trt_cls.training.logs.files import Averaged, EpochRow, epochs_without_gain
from trt_cls.training.optimization import penalty, schedule
from trt_cls.training.parallel import take_over
from trt_cls.training.prefetch import prefetched
from trt_cls.training.run_folder import Results
from trt_cls.training.setup import TrainingData
from trt_cls.training.state import TrainState
from trt_cls.training.validation import BrokenImages, validate


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
    stopped_early: bool
    """By early_stopping_patience, before the last epoch."""
    averaged: Averaged | None
    """What average_checkpoints asked for."""


class Training:
    """One training from its first step, or the one it is restored to, to its end."""

    def __init__(
        self,
        config: TrainConfig,
        extensions: Extensions,
        data: TrainingData,
        learner: Learner,
        results: Results,
        request: dict[str, Any],
        first_epoch: int,
        save_every: int | None,
        processes: Processes,
    ) -> None:
        self._config, self._extensions = config, extensions
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
        self._average: Averaged | None = None
        self._saves = SavePoints(results.state, save_every)
        self._stop = StopRequest(patient=processes.size > 1)

    @property
    def epoch(self) -> int:
        """The epoch, counted from 1, that comes next or goes on."""
        return self._epoch

    def restore(self, state: TrainState) -> None:
        """Goes to where `state` was saved.

        Raises:
            RequestError: the training is over.
            ValueError, RuntimeError, LookupError: it is no state of this training, see `state.foreign_told`.
        """
        self._rows = list(state.rows)
        self._epoch, self._step = state.epoch, state.step
        if self._over(self._epoch):
            done = f"all {self._config.n_epochs} epochs are done"
            if self._epoch <= self._config.n_epochs:
                done = f"the training stopped early, after epoch {self._rows[-1].epoch}"
            raise RequestError(
                f"{self._results.root}: {done}, nothing to resume; "
                f"use the model: trt-cls export -m {self._results.best}"
            )
        if self._step > self._data.loader.steps_per_epoch:
            raise ValueError(f"step {self._step} of {self._data.loader.steps_per_epoch}")
        self._learner.restore(state.learner)
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
                while not self._over(self._epoch):
                    self._run_epoch(journal)
        except BaseException as error:
            if journal:
                journal.failed(error)
            raise
        result = self._result()
        if journal:
            journal.done(self._rows, result.best)
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
            journal.epoch_done(self._rows, self._learner.result, best=best)
        if self._extensions.average_checkpoints and self._over(self._epoch + 1):
            self._average = self._averaged(journal)
        self._epoch, self._step = self._epoch + 1, 0
        self._learner.start_epoch()
        self._save_state()  # last: after a crash the epoch is repeated, and writes the same files again

    def _train_epoch(self, journal: Journal | None) -> None:
        steps, group = self._data.loader.steps_per_epoch, self._extensions.accumulate_steps
        before = (self._epoch - 1) * steps
        first = self._step
        for batch in self._batches():
            self._save_or_stop()
            if journal and self._step == first:
                journal.first_batch(self._epoch, batch.images)
            self._broken_train.add(batch.skipped)
            ends_group = (self._step + 1) % group == 0 or self._step + 1 == steps
            self._learner.step(batch, before + self._step, self._rate_at(self._step), ends_group=ends_group)
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
            batches = self._data.loader.epoch(self._epoch, self._step)
            yield from prefetched(batches, self._learner.compute, self._data.kernel)
        except LoaderError:
            # a signal to all processes reaches those of the loader too, which do not ignore it before they have begun
            if not self._stop.requested:
                raise

    def _epoch_row(self) -> EpochRow:
        training = self._learner.metrics_of_all()
        self._broken_train.share(self._processes)
        if not training.images:
            each = " for each process" if self._processes.size > 1 else ""
            raise DataError(
                f"{self._data.train.root}: epoch {self._epoch} had no batch to learn from; "
                f"expected two readable images at least{each}; add images"
            )
        self._require_finite("training", training.loss)
        accuracy, loss = self._validated(self._learner.result)
        return EpochRow(
            epoch=self._epoch,
            acc=training.accuracy,
            loss=training.loss,
            lr=self._rate_at(self._data.loader.steps_per_epoch - 1),
            val_acc=accuracy,
            val_loss=loss,
        )

    def _rate_at(self, step: int) -> float:
        """The learning rate in a step of this epoch, from 0; it is that of the optimizer's step."""
        group = self._extensions.accumulate_steps
        groups = math.ceil(self._data.loader.steps_per_epoch / group)
        return self._rate(((self._epoch - 1) * groups + step // group) / (groups * self._config.n_epochs))

    def _validated(self, network: nn.Module) -> tuple[float, float]:
        """Accuracy, and loss with the penalty."""
        take_over(network.buffers(), self._processes)  # each process's own batches made them
        compute = self._learner.compute
        accuracy, loss = validate(network, self._validation_batches(), compute, self._broken_val, self._processes)
        loss += penalty(self._config.reg_config, network).value().item()
        self._require_finite("validation", loss)
        return accuracy, loss

    def _require_finite(self, which: str, loss: float) -> None:
        """A network whose answers are no numbers is none to save: it has an accuracy all the same, that of class 0."""
        if math.isfinite(loss):
            return
        start = ""
        if self._rows:
            start = f", from {self._results.best} by train_config.pretrained_model_path"
        raise TrtClsError(
            f"epoch {self._epoch}: the {which} loss is {loss}; expected a finite number; lower the learning_rate of "
            f"train_config.lr_config, or set extensions.clip_grad_norm, and train anew in another folder{start}"
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

    def _over(self, epoch: int) -> bool:
        """Whether `epoch` is not to be trained."""
        patience = self._extensions.early_stopping_patience
        return epoch > self._config.n_epochs or (0 < patience <= epochs_without_gain(self._rows))

    def _averaged(self, journal: Journal | None) -> Averaged:
        """Makes, validates and saves the mean of the last checkpoints."""
        rows = self._rows[-self._extensions.average_checkpoints :]
        network = deepcopy(self._learner.model)
        if self._processes.first:  # on other machines the files are not
            states = (load_checkpoint(self._checkpoint(row.epoch)).module.state_dict() for row in rows)
            network.load_state_dict(network.state_dict() | mean_of(states))
        take_over(network.state_dict().values(), self._processes)
        renew_statistics(network, self._images_once_more(), self._learner.compute, self._processes)
        accuracy, loss = self._validated(network)
        averaged = Averaged(self._results.averaged, rows[0].epoch, rows[-1].epoch, accuracy, loss)
        if journal:
            journal.averaged(averaged, network)
        return averaged

    def _images_once_more(self) -> Iterator[Tensor]:
        """This process's share of the training images, drawn as for the epoch after this one."""
        batches = self._data.loader.epoch(self._epoch + 1)
        for batch in prefetched(batches, self._learner.compute, self._data.kernel):
            self._save_or_stop()
            yield batch.images

    def _checkpoint(self, epoch: int) -> Path:
        return self._results.checkpoint(self._data.contract.model.arch, epoch)

    def _save_state(self) -> None:
        training = self._learner.metrics_of_all()
        if training.images:
            self._require_finite("training", training.loss)  # else --resume would go on from there
        self._broken_train.share(self._processes)
        self._broken_val.share(self._processes)
        state = TrainState(
            request=self._request,
            epoch=self._epoch,
            step=self._step,
            learner=self._learner.state(),
            # what comes after the last epoch's row belongs to that epoch, which is then repeated from its last step
            rows=tuple(row for row in self._rows if row.epoch < self._epoch),
            broken_train=self._broken_train.state(),
            broken_val=self._broken_val.state(),
        )
        if self._processes.first:
            self._saves.write(state)
        self._processes.wait()

    def _result(self) -> TrainingResult:
        return TrainingResult(
            results=self._results,
            last=self._checkpoint(self._rows[-1].epoch),
            rows=tuple(self._rows),
            best=max(self._rows, key=lambda row: row.rank),
            skipped=self._broken_train.images + self._broken_val.images,
            steps_left_out=self._learner.steps_left_out,
            stopped_early=self._rows[-1].epoch < self._config.n_epochs,
            averaged=self._average,
        )
