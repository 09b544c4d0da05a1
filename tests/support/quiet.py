"""A reporter that prints nothing and can stop a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trt_cls.training.logs.console import Reporter


class Quiet(Reporter):
    """Keeps lines to itself, and calls `then` after step `step` of epoch `epoch`."""

    def __init__(self, epoch: int = 0, step: int = 0, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._when, self._then = (epoch, step), then
        self._epoch = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def epoch_started(self, epoch: int, n_epochs: int, steps: int, done: int) -> None:
        super().epoch_started(epoch, n_epochs, steps, done)
        self._epoch = epoch

    def step_done(self, step: int, *_: Any) -> None:
        if (self._epoch, step) == self._when:
            self._then()
