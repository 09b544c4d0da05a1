"""The training loop: epochs of steps, validation and logs after each epoch, a stop that can be resumed at any step.

Several processes run it in lockstep; the first writes for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Batch, Skipped, stream
from trt_cls.data.workers import LoaderError
from trt_cls.errors import DataError, RequestError, TrtClsError
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.training.averaging import mean_of, renew_statistics
from trt_cls.training.learner import EpochMeans, Learner
from trt_cls.training.logs import Averaged, EpochRow, Log, ending, epochs_without_gain
from trt_cls.training.optimization import penalty, schedule, warm_up
from trt_cls.training.parallel import copy_from_first
from trt_cls.training.prefetch import prefetched
from trt_cls.training.run_folder import RunFolder
from trt_cls.training.setup import Setup
from trt_cls.training.state import Interrupted, SavePoints, StopRequest, TrainState
from trt_cls.training.validation import BrokenImages, LabelValidation, Validation, validate, validate_labels


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training."""

    results: RunFolder
    last: Path
    """The checkpoint of the last epoch."""
    rows: tuple[EpochRow, ...]
    best: EpochRow
    skipped: tuple[Skipped, ...]
    """Broken images of both folders, each once."""
    steps_left_out: int
    """Steps without enough readable images."""
    stopped_early: bool
    """By early_stopping_patience, before the last epoch."""
    averaged: Averaged | None
    """If average_checkpoints asks for it."""
    offered: Path
    """The better checkpoint of the best epoch and `averaged`, by extensions.best_metric."""


@dataclass
class Training:
    """One training from its first step, or the one it is restored to, to its end."""

    setup: Setup
    learner: Learner
    folder: RunFolder
    request: dict[str, Any]
    """See `state.request_fields`."""
    save_every: int | None
    """Steps between saved states; None: every few minutes."""
    epoch: int
    """The epoch, counted from 1, that is next or in progress."""
    step: int = 0
    """Steps of this epoch that are done."""
    logs: Sequence[Log] = ()
    """Empty in all processes but the first."""
    rows: list[EpochRow] = field(default_factory=list)
    average: Averaged | None = None

    def __post_init__(self) -> None:
        self._config, self._extensions = self.setup.config, self.setup.extensions
        self._metric = self._extensions.best_metric
        self._processes, self._compute = self.setup.processes, self.setup.compute
        self._steps = self.setup.loader.steps_per_epoch
        self._groups = math.ceil(self._steps / self._extensions.accumulate_steps)
        self._rate = schedule(self._config.lr_config, self._processes.size)
        self._broken_train, self._broken_val = BrokenImages(self.setup.train), BrokenImages(self.setup.val)
        self._saves = SavePoints(self.folder.state, self.save_every)
        self._stop = StopRequest(patient=self._processes.size > 1)

    def restore(self, state: TrainState) -> None:
        """Goes to where `state` was saved.

        Raises:
            RequestError: the training is over.
            ValueError, RuntimeError, LookupError: it is no state of this training, see `state.foreign_reported`.
        """
        self.rows = list(state.rows)
        self.epoch, self.step = state.epoch, state.step
        if self._is_over(self.epoch):
            done = f"all {self._config.n_epochs} epochs are done"
            if self.epoch <= self._config.n_epochs:
                done = f"the training stopped early, after epoch {self.rows[-1].epoch}"
            raise RequestError(
                f"{self.folder.root}: {done}, nothing to resume; use the model: trt-cls export -m {self.folder.best}"
            )
        if self.step > self._steps:
            raise ValueError(f"step {self.step} of {self._steps}")
        self.learner.restore(state.learner)
        self._broken_train.restore(state.broken_train)
        self._broken_val.restore(state.broken_val)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Broken images of both folders so far, each once."""
        return self._broken_train.images + self._broken_val.images

    def run(self, *, resumed: bool) -> TrainingResult:
        """Trains to the end."""
        for log in self.logs:
            log.started(self.epoch, resumed=resumed)
        try:
            if not resumed:
                self._save_state()
            with self._stop:
                while not self._is_over(self.epoch):
                    self._run_epoch()
        except BaseException as error:
            for log in reversed(self.logs):
                log.failed(error)
            raise
        result = self._result()
        for log in self.logs:
            log.done(self.rows, result.best, ending(self.rows, self._config.n_epochs, self._metric))
        return result

    def _run_epoch(self) -> None:
        started = time.monotonic()
        self._train_epoch()
        row = self._epoch_row()
        best = all(row.rank(self._metric) > earlier.rank(self._metric) for earlier in self.rows)
        self.rows.append(row)
        for log in self.logs:
            log.epoch_done(self.rows, self.learner.result, best=best, seconds=time.monotonic() - started)
        if self._extensions.average_checkpoints and self._is_over(self.epoch + 1):
            self._average_checkpoints()
        self.epoch, self.step = self.epoch + 1, 0
        self.learner.start_epoch()
        self._save_state()  # last: after a crash the epoch is repeated, and writes the same files again

    def _train_epoch(self) -> None:
        before, first, group = (self.epoch - 1) * self._steps, self.step, self._extensions.accumulate_steps
        for log in self.logs:
            log.epoch_started(self.epoch, self._config.n_epochs, self._steps, first)
        for batch in self._batches():
            self._save_or_stop()
            for log in self.logs if self.step == first else ():
                log.first_batch(self.epoch, batch)
            self._broken_train.add(batch.skipped)
            ends_group = (self.step + 1) % group == 0 or self.step + 1 == self._steps
            rate, size = self._rate_at(self.step), self.setup.image_size(self._progress(self.step))
            self.learner.step(batch, before + self.step, rate, size=size, ends_group=ends_group)
            self.step += 1
            self._saves.step_done()
            for log in self.logs:
                log.step_done(self.step, len(batch.images) * self._processes.size, self.learner.metrics)
        self._save_or_stop()
        for log in self.logs:
            log.epoch_stopped()

    def _batches(self) -> Iterator[TrainingBatch]:
        """The rest of the epoch."""
        if self.step == self._steps:
            return
        try:
            batches = self.setup.loader.epoch(self.epoch, self.step)
            yield from prefetched(batches, self._compute, self.setup.kernel)
        except LoaderError:
            # a signal to all processes may end those of the loader before they have begun to ignore it
            if not self._stop.requested:
                raise

    def _epoch_row(self) -> EpochRow:
        training = self.learner.metrics_of_all()
        self._broken_train.share(self._processes)
        if not training.images:
            each = " for each process" if self._processes.size > 1 else ""
            raise DataError(
                f"{self.setup.train.root}: epoch {self.epoch} had no batch to train on; "
                f"expected two readable images at least{each}; add images"
            )
        self._require_finite("training", training.loss + training.penalty)
        return self._validated(self.learner.result, training)

    def _rate_at(self, step: int) -> float:
        """The learning rate of a step of this epoch, counted from 0; the same in all steps of a group."""
        warming = warm_up(self._steps_done(step), self._extensions.warm_up_steps)
        return warming * self._rate(self._progress(step))

    def _progress(self, step: int) -> float:
        """The share of the training that is done before a step of this epoch."""
        return self._steps_done(step) / (self._groups * self._config.n_epochs)

    def _steps_done(self, step: int) -> int:
        """Steps of the optimizer before a step of this epoch."""
        return (self.epoch - 1) * self._groups + step // self._extensions.accumulate_steps

    def _validated(self, network: nn.Module, training: EpochMeans) -> EpochRow:
        """The row of this epoch, in which `network` was trained with the metrics `training`."""
        copy_from_first(network.buffers(), self._processes)  # they come from each process's own batches
        compute = self._compute
        validated = (self._validation_batches(), compute, self._broken_val, self._processes)
        found: Validation | LabelValidation
        if self._extensions.labels:
            precision = self._extensions.threshold_precision
            found = validate_labels(network, *validated, self.setup.val, precision)
        else:
            found = validate(network, *validated)
        weights = penalty(self._config.reg_config, network).value().item()
        self._require_finite("validation", found.loss + weights)
        return EpochRow(
            epoch=self.epoch,
            acc=training.accuracy,
            loss=training.loss,
            lr=self._rate_at(self._steps - 1),
            penalty=training.penalty,
            val_penalty=weights,
            **found.figures(self.setup.contract.classes),
        )

    def _require_finite(self, which: str, loss: float) -> None:
        """Refuses a network whose outputs are not finite: its accuracy would be that of class 0."""
        if math.isfinite(loss):
            return
        start = ""
        if self.rows:
            start = f", from {self.folder.best} by train_config.pretrained_model_path"
        raise TrtClsError(
            f"epoch {self.epoch}: the {which} loss is {loss}; expected a finite number; lower the learning_rate of "
            f"train_config.lr_config, or set extensions.clip_grad_norm, and train again in another folder{start}"
        )

    def _validation_batches(self) -> Iterator[Batch]:
        """This process's share; all processes call `_save_or_stop` equally often."""
        share = self.setup.val.samples[self._processes.rank :: self._processes.size]
        longest = self.setup.val.samples[:: self._processes.size]
        size = self._config.batch_size_per_gpu
        for batch in stream(share, self.setup.contract.preprocessing, batch_size=size, workers=self._config.n_workers):
            self._save_or_stop()
            yield batch
        if math.ceil(len(share) / size) < math.ceil(len(longest) / size):
            self._save_or_stop()

    def _save_or_stop(self) -> None:
        """Saves the state when it is due or a signal came, and ends after a signal; all processes agree on both."""
        due = self._processes.first and self._saves.due()
        stop, save = self._processes.totals(self._stop.requested, due)
        if stop or save:
            self._save_state()
        if stop:
            raise Interrupted(
                f"interrupted; epoch {self.epoch}, step {self.step} of {self._steps} is "
                f"saved; go on with: {self.folder.resume_command(self._processes)}"
            )

    def _is_over(self, epoch: int) -> bool:
        """Whether the training ends before `epoch`."""
        patience = self._extensions.early_stopping_patience
        return epoch > self._config.n_epochs or (0 < patience <= epochs_without_gain(self.rows, self._metric))

    def _average_checkpoints(self) -> None:
        """Makes, validates and saves the mean of the last checkpoints."""
        rows = self.rows[-self._extensions.average_checkpoints :]
        network = deepcopy(self.learner.model)
        if self._processes.first:  # other machines do not have the files
            states = (load_checkpoint(self._checkpoint(row.epoch)).module.state_dict() for row in rows)
            network.load_state_dict(network.state_dict() | mean_of(states))
        copy_from_first(network.state_dict().values(), self._processes)
        renew_statistics(network, self._images_again(), self._compute, self._processes)
        row = self._validated(network, self.learner.metrics_of_all())
        self.average = Averaged(self.folder.averaged, rows[0].epoch, row)
        for log in self.logs:
            log.averaged(self.average, network)

    def _images_again(self) -> Iterator[Tensor]:
        """This process's share of the training images, augmented as in the epoch after this one."""
        batches = self.setup.loader.epoch(self.epoch + 1)
        for batch in prefetched(batches, self._compute, self.setup.kernel):
            self._save_or_stop()
            yield batch.images

    def _checkpoint(self, epoch: int) -> Path:
        return self.folder.checkpoint(self.setup.contract.model.arch, epoch)

    def _save_state(self) -> None:
        training = self.learner.metrics_of_all()
        if training.images:  # else --resume would continue from there
            self._require_finite("training", training.loss + training.penalty)
        self._broken_train.share(self._processes)
        self._broken_val.share(self._processes)
        state = TrainState(
            request=self.request,
            epoch=self.epoch,
            step=self.step,
            learner=self.learner.state(),
            # a row of this epoch is left out: a state that is saved while checkpoints are averaged resumes before it
            rows=tuple(row for row in self.rows if row.epoch < self.epoch),
            broken_train=self._broken_train.state(),
            broken_val=self._broken_val.state(),
        )
        if self._processes.first:
            self._saves.write(state)
        self._processes.wait()

    def _result(self) -> TrainingResult:
        best, average = max(self.rows, key=lambda row: row.rank(self._metric)), self.average
        better = average if average and average.row.score(self._metric) > best.score(self._metric) else None
        return TrainingResult(
            results=self.folder,
            last=self._checkpoint(self.rows[-1].epoch),
            rows=tuple(self.rows),
            best=best,
            skipped=self.skipped,
            steps_left_out=self.learner.steps_left_out,
            stopped_early=self.rows[-1].epoch < self._config.n_epochs,
            averaged=average,
            offered=better.path if better else self.folder.best,
        )
