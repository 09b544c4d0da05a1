"""The progress of a training on the console: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import IO, TYPE_CHECKING

from torch import nn

from trt_cls.text import printable
from trt_cls.training.learner import EpochMeans
from trt_cls.training.logs import Averaged, EpochRow, Log
from trt_cls.urls import redacted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_SECONDS = 0.5
LINE_SECONDS = 30.0


class Reporter(Log):
    """Writes to `stream`, with a bar when it is a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._images = self._steps = self._n_epochs = 0
        self._title = ""
        self._started = self._reported = time.monotonic()

    def line(self, text: str) -> None:
        """Writes one line; a closed terminal does not end the training."""
        with suppress(OSError):
            print(redacted(printable(text)), file=self._stream, flush=True)

    def epoch_started(self, epoch: int, n_epochs: int, steps: int, done: int) -> None:
        """See `Log.epoch_started`."""
        self._title = f"epoch {epoch}/{n_epochs}"
        self._images, self._steps, self._n_epochs = 0, steps, n_epochs
        self._started = self._reported = time.monotonic()
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(self._title, total=steps, completed=done, metrics="")
            self._bar.start()

    def step_done(self, step: int, images: int, metrics: Callable[[], EpochMeans]) -> None:
        """See `Log.step_done`; `metrics` is called rarely, because it waits for the GPU."""
        self._images += images
        now = time.monotonic()
        if now - self._reported < (BAR_SECONDS if self._bar else LINE_SECONDS):
            return
        self._reported = now
        now_at = metrics()
        text = f"loss {now_at.loss:.4f}  acc {now_at.accuracy:.4f}  {self._images / (now - self._started):.0f} images/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, metrics=text)
        else:
            self.line(f"{self._title}  step {step}/{self._steps}  {text}")

    def epoch_stopped(self) -> None:
        """See `Log.epoch_stopped`."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        row = rows[-1]
        average = f"  val_map {row.val_map:.4f}" if row.thresholds else ""
        self.line(
            f"{self._title}  loss {row.loss:.4f}  acc {row.acc:.4f}  val_loss {row.val_loss:.4f}  "
            f"val_acc {row.val_acc:.4f}{average}{' (best)' if best else ''}  penalty {row.penalty:.4f}  "
            f"lr {row.lr:.3g}  {seconds:.1f} s, "
            f"{timedelta(seconds=round(seconds * (self._n_epochs - row.epoch)))} left"
        )

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """See `Log.averaged`."""
        self.line(str(averaged))

    def failed(self, error: BaseException) -> None:
        """See `Log.failed`."""
        self.epoch_stopped()

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """See `Log.done`."""
        if rows[-1].epoch < self._n_epochs:
            self.line(ended)


def _bar(stream: IO[str]) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    )
