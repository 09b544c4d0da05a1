"""When the state of a training is written: every so many steps, or every few minutes, seldom enough to cost little."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from trt_cls.training.disk import room_for
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
