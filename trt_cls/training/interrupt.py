"""Ctrl-C, SIGTERM and SIGHUP: requests to stop after the step that runs, so that a training resumes exactly there."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from trt_cls.errors import TrtClsError

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
