"""What a training says while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import IO, TYPE_CHECKING

from trt_cls.text import printable
from trt_cls.training.learner import Metrics
from trt_cls.training.logs.files import EpochRow

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_SECONDS = 0.5
LINE_SECONDS = 30.0


class Reporter:
    """Writes to `stream`, with a bar when it is a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._images = 0
        self._total = 0
        self._title = ""
        self._started = self._told = time.monotonic()

    def line(self, text: str) -> None:
        """Writes one line; a terminal that is gone does not end the training."""
        with suppress(OSError):
            print(printable(text), file=self._stream, flush=True)

    def epoch_started(self, epoch: int, n_epochs: int, steps: int, done: int) -> None:
        """An epoch of `steps` steps begins, or goes on after `done` of them."""
        self._title = f"epoch {epoch}/{n_epochs}"
        self._images, self._total = 0, steps
        self._started = self._told = time.monotonic()
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(self._title, total=steps, completed=done, metrics="")
            self._bar.start()

    def step_done(self, step: int, images: int, metrics: Callable[[], Metrics]) -> None:
        """Step `step` (counted from 1) of the epoch is done; it had `images` images.

        `metrics` is called seldom, because it waits for the GPU.
        """
        self._images += images
        now = time.monotonic()
        if now - self._told < (BAR_SECONDS if self._bar else LINE_SECONDS):
            return
        self._told = now
        now_at = metrics()
        text = f"loss {now_at.loss:.4f}  acc {now_at.accuracy:.4f}  {self._images / (now - self._started):.0f} images/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, metrics=text)
        else:
            self.line(f"{self._title}  step {step}/{self._total}  {text}")

    def epoch_stopped(self) -> None:
        """The steps of the epoch are over, or the training ends before them."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def epoch_done(self, row: EpochRow, seconds: float, remaining: float, best: bool) -> None:
        """The epoch is trained, validated and saved; `remaining` is the estimate for those to come, in seconds."""
        self.line(
            f"{self._title}  loss {row.loss:.4f}  acc {row.acc:.4f}  val_loss {row.val_loss:.4f}  "
            f"val_acc {row.val_acc:.4f}{' (best)' if best else ''}  lr {row.lr:.3g}  {seconds:.1f} s, "
            f"{timedelta(seconds=round(remaining))} left"
        )


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
