"""When a training saves its state: every so many steps or minutes, and when a signal asks it to stop.

Ctrl-C, SIGTERM and SIGHUP end a training after the current step, so that it resumes exactly there.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trt_cls import files
from trt_cls.errors import TrtClsError
from trt_cls.training.state import TrainState, write_state

SECONDS = 300.0
"""Between two states, if no number of steps is given: the most that a crash may cost."""
SHARE = 0.02
"""Largest share of the time that saving may take."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP last: it is left alone under nohup."""


class SavePoints:
    """Writes states to `path`, every `every` steps; None: every few minutes."""

    def __init__(self, path: Path, every: int | None) -> None:
        self._path, self._every = path, every
        self._steps = 0
        self._saved = time.monotonic()
        self._cost = 0.0

    def step_done(self) -> None:
        """Counts a step."""
        self._steps += 1

    def due(self) -> bool:
        """Whether it is time to save again."""
        if self._every is not None:
            return self._steps >= self._every
        return self._steps > 0 and time.monotonic() - self._saved >= max(SECONDS, self._cost / SHARE)

    def write(self, state: TrainState) -> None:
        """Writes `state` in place of the one before, atomically.

        Raises:
            TrtClsError: the disk is full.
        """
        started = time.monotonic()
        with room_for(self._path, _size(state.learner)):
            write_state(self._path, state)
        self._steps, self._saved = 0, time.monotonic()
        self._cost = self._saved - started


def room_for(path: Path, size: int) -> AbstractContextManager[None]:
    """A context in which `path` is written, about `size` bytes.

    Raises:
        TrtClsError: the disk is full.
    """
    return files.room_for(path, size, "what was saved before is intact: make room, then go on with --resume")


class Interrupted(TrtClsError):
    """A training was stopped by a signal; its state is saved."""

    exit_code = 130


class StopRequest:
    """While entered, the first signal sets `requested`; a second one has its usual effect, at once.

    With `patient` later signals have no effect: torchrun forwards a Ctrl-C to processes that have it from the terminal
    already. A SIGHUP that is ignored, as under nohup, stays ignored. Outside of the main thread, where Python delivers
    no signals, it stays unset.
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

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}


def _size(tree: object) -> int:
    """Bytes of all tensors in dictionaries and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(_size(value) for value in tree.values())
    return sum(_size(value) for value in tree) if isinstance(tree, list | tuple) else 0
