"""When the state of a training is written: every so many steps, or every few minutes, seldom enough to cost little.

A full disk during a training, reported as one error.

Ctrl-C, SIGTERM and SIGHUP: requests to stop after the step that runs, so that a training resumes exactly there.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from trt_cls import files
from trt_cls.errors import TrtClsError
from trt_cls.training.state import TrainState, write_state

SECONDS = 300.0
"""Between two states, where no number of steps is asked for: what a crash may cost."""
SHARE = 0.02
"""Of the time that saving may take, at most."""


class SavePoints:
    """Writes states to `path`; `every` is a number of steps, or None to go by the clock."""

    def __init__(self, path: Path, every: int | None) -> None:
        self._path = path
        self._every = every
        self._steps = 0
        self._saved = time.monotonic()
        self._cost = 0.0

    def step_done(self) -> None:
        """One more step would be lost in a crash."""
        self._steps += 1

    def due(self) -> bool:
        """Whether it is time to save again."""
        if self._every is not None:
            return self._steps >= self._every
        return self._steps > 0 and time.monotonic() - self._saved >= max(SECONDS, self._cost / SHARE)

    def write(self, state: TrainState) -> None:
        """Writes `state` in place of the one before, whole or not at all.

        Raises:
            TrtClsError: the disk is full.
        """
        started = time.monotonic()
        with room_for(self._path, _size(state.learner)):
            write_state(self._path, state)
        self._steps, self._saved = 0, time.monotonic()
        self._cost = self._saved - started


def _size(tree: object) -> int:
    """Bytes of all tensors in dictionaries and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(_size(value) for value in tree.values())
    return sum(_size(value) for value in tree) if isinstance(tree, list | tuple) else 0


def room_for(path: Path, size: int) -> AbstractContextManager[None]:
    """Runs the writing of `path`, about `size` bytes.

    Raises:
        TrtClsError: there is no room for it.
    """
    return files.room_for(path, size, "what was saved before is whole: make room, then go on with --resume")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(TrtClsError):
    """A training was stopped by a signal; its state is saved."""

    exit_code = 130


class StopRequest:
    """While entered, the first signal sets `requested`; a second one does what it did before, at once.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    With `patient` later ones do nothing: torchrun hands a Ctrl-C on to processes that the terminal has told already.
    Outside of the main thread, where Python delivers no signals, it stays unset.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested = False
        self._patient = patient
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            noted = SIGNALS[:-1] if under_nohup else SIGNALS
            self._previous = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
