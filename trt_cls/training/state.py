"""train_state.pt: what --resume needs for the same numbers as without a stop, and when it is written.

Ctrl-C, SIGTERM and SIGHUP end a training after the current step, so that it resumes exactly there. The file contains
tensors, numbers and text only; it is loaded with weights_only=True, so it can't run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trt_cls import files
from trt_cls.data.folder import ImageFolder
from trt_cls.errors import ArtefactError, RequestError, TrtClsError
from trt_cls.files import atomic
from trt_cls.spec.experiment import NO_EXTENSIONS, Experiment
from trt_cls.training.logs import EpochRow
from trt_cls.urls import without_secrets

FORMAT = 3

MOST_STEPS = 2**31
"""Largest number of epochs, and of steps in one."""
SAVED_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
LEARNER = {"model": dict, "optimizer": dict, "scaler": dict, "sums": list, "group": dict, "mean": dict}
"""The parts of a learner's state."""

MAY_DIFFER = (
    "train_config.n_workers",
    "train_config.train_dataset_path",
    "train_config.val_dataset_path",
    "train_config.pretrained_model_path",
    "train_config.visualizer",
    "extensions.distillation.teacher",
    "eval_config",
)
"""Fields that a resumed training may change, because its numbers do not depend on them. Folders and files are compared
by content."""


@dataclass(frozen=True)
class TrainState:
    """A training after `step` steps of epoch `epoch` (counted from 1)."""

    request: dict[str, Any]
    """See `request_fields`."""
    epoch: int
    step: int
    learner: dict[str, Any]
    rows: tuple[EpochRow, ...]
    """Of the epochs that are over."""
    broken_train: dict[str, str]
    """Broken images by their paths in the folder, with reasons."""
    broken_val: dict[str, str]


def request_fields(
    experiment: Experiment, options: Mapping[str, Any], train: ImageFolder, val: ImageFolder
) -> dict[str, Any]:
    """Everything that the numbers of a training depend on, by name: spec fields, options, classes and images."""
    found = {
        name: value
        for name, value in fields_by_path(experiment).items()
        if not any(name == free or name.startswith(f"{free}.") for free in MAY_DIFFER)
    }
    found |= {**options, "--order": "folder" if train.samples.groups is None else "shards"}
    if experiment.extensions.distillation:
        found["teacher"] = _digest_of_teacher(Path(experiment.extensions.distillation.teacher))
    images = {"training images": _digest_of_images(train), "validation images": _digest_of_images(val)}
    return found | {"classes": list(train.classes)} | images


def write_state(path: Path, state: TrainState) -> None:
    """Writes `state` atomically."""
    rows = [[getattr(row, field.name) for field in fields(row)] for row in state.rows]
    content = {"format": FORMAT, **vars(state), "request": json.dumps(state.request), "rows": rows}
    # a file object: given a path, torch does not report which system error stopped it
    with atomic(path) as beside, beside.open("wb") as file:
        torch.save(content, file)


def read_state(path: Path) -> TrainState:
    """The state in `path`, on the CPU.

    Raises:
        ArtefactError: it is no state of a format known here.
    """
    with foreign_reported(path):
        return _state_from_content(torch.load(path, map_location="cpu", weights_only=True))


@contextmanager
def foreign_reported(path: Path) -> Iterator[None]:
    """A context in which the state in `path` is read and restored.

    Raises:
        ArtefactError: it is damaged, of another version, or of another training.
    """
    try:
        yield
    except (TrtClsError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load raises anything on a damaged file
        reason = f": {error}" if isinstance(error, _Foreign) else ""
        raise ArtefactError(
            f"{path}: can't be read ({type(error).__name__}{reason}); expected the state of a training by this "
            "version; train again in another folder, from one of its checkpoints by train_config.pretrained_model_path"
        ) from error


def refuse_other_request(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Refuses to resume a training with another request.

    Raises:
        RequestError: names what differs.
    """
    # a version that did not have a field had it off
    saved, asked = (
        fields_by_path(NO_EXTENSIONS, "extensions") | {"--order": "folder"} | found for found in (saved, asked)
    )
    different = [name for name in sorted(saved.keys() | asked.keys()) if saved.get(name) != asked.get(name)]
    if different:
        listed = "; ".join(f"{name}: {_shown(saved.get(name))} ≠ {_shown(asked.get(name))}" for name in different)
        raise RequestError(
            f"--resume: {listed}; expected what {path} began with (before the ≠); "
            "go on with that, or train in another folder with -r"
        )


def fields_by_path(value: Any, path: str = "") -> dict[str, Any]:
    """Values of a spec by the paths of their fields, as JSON would return them; texts without the secrets of URLs."""
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for field in fields(value):
            found |= fields_by_path(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
        return found
    if value is None:
        return {}
    value = without_secrets(value)
    return {path: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value}


def _digest_of_teacher(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ArtefactError(
            f"extensions.distillation.teacher: {path}: can't be read ({error.strerror}); expected a model file; "
            "name one, or leave the block out"
        ) from error


class _Foreign(ValueError):
    """The part of a state that is not valid."""


def _state_from_content(content: Any) -> TrainState:
    """Checks the type and range of every part; torch checks the tensors and the optimizer's numbers."""
    _require(isinstance(content, dict) and content.get("format") == FORMAT, "format")
    parts = ("request", "epoch", "step", "rows", "learner", "broken_train", "broken_val")
    request, epoch, step, rows, learner, *broken = (content.get(part) for part in parts)
    _require(isinstance(request, str), "request")
    request = json.loads(request)
    _require(isinstance(request, dict) and request.get("--precision") in SAVED_PRECISIONS, "request")
    _require(isinstance(request.get("--compile"), bool), "request")
    _require(request.get("--order", "folder") in ("folder", "shards"), "request")
    _require(
        type(epoch) is int and 1 <= epoch <= MOST_STEPS and type(step) is int and 0 <= step <= MOST_STEPS,
        "epoch or step",
    )
    _require(isinstance(rows, list) and all(_is_row(row) for row in rows), "rows")
    for names in broken:
        _require(isinstance(names, dict), "broken")
        _require(all(type(text) is str for pair in names.items() for text in pair), "broken")
    _require(isinstance(learner, dict), "learner")
    _require(all(isinstance(learner.get(name), kind) for name, kind in LEARNER.items()), "learner")
    model = learner["model"].items()
    _require(all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in model), "model")
    learner.setdefault("lone", [None] * len(learner["sums"]))
    return TrainState(request, epoch, step, learner, tuple(EpochRow(*row) for row in rows), *broken)


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != len(fields(EpochRow)) or type(row[0]) is not int:
        return False
    *figures, recalls, one_answer, average, thresholds = row[1:]
    if not isinstance(recalls, tuple) or not isinstance(thresholds, tuple) or type(one_answer) is not str:
        return False
    values = (*figures, average, *recalls, *thresholds)
    return 1 <= row[0] <= MOST_STEPS and all(type(value) is float and math.isfinite(value) for value in values)


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise _Foreign(part)


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _digest_of_images(folder: ImageFolder) -> str:
    """The number of images and a digest of their names and labels, wherever the folder is."""
    digest = hashlib.sha256()
    pairs = zip(folder.samples.keys(), folder.samples.indices(), strict=True)
    for place, (key, indices) in enumerate(pairs):
        digest.update(b"\n" * (place > 0) + b" ".join((key, *(b"%d" % index for index in indices))))
    return f"{len(folder.samples)} ({digest.hexdigest()[:8]})"


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
        with room_to_save(self._path, _size(state.learner)):
            write_state(self._path, state)
        self._steps, self._saved = 0, time.monotonic()
        self._cost = self._saved - started


def room_to_save(path: Path, size: int) -> AbstractContextManager[None]:
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
