"""train_state.pt: what --resume needs to go on as if nothing had happened, and whether the request is still the same.

The file holds tensors, numbers and text only; it is loaded with weights_only=True, so it can't run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from trt_cls.data.folder import ImageFolder
from trt_cls.errors import ArtefactError, RequestError, TrtClsError
from trt_cls.files import atomic
from trt_cls.spec.experiment import Experiment
from trt_cls.text import FOREIGN
from trt_cls.training.logs.files import EpochRow

FORMAT = 2

MOST = 2**31
"""Epochs, and steps of one."""
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
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
"""Fields that a resumed training may change: they do not bear on its numbers. Folders and files are compared by
their content."""


@dataclass(frozen=True)
class TrainState:
    """A training after `step` steps of epoch `epoch` (counted from 1)."""

    request: dict[str, Any]
    """What was asked for, as `request_fields` gives it."""
    epoch: int
    step: int
    learner: dict[str, Any]
    rows: tuple[EpochRow, ...]
    """The epochs that are over."""
    broken_train: dict[str, str]
    """Broken images by their names below the folder, with reasons."""
    broken_val: dict[str, str]


def request_fields(
    experiment: Experiment, options: Mapping[str, Any], train: ImageFolder, val: ImageFolder
) -> dict[str, Any]:
    """All that the numbers of a training depend on, by name: spec fields, options, classes and images."""
    found = {
        name: value
        for name, value in flat("", experiment).items()
        if not any(name == free or name.startswith(f"{free}.") for free in MAY_DIFFER)
    }
    found |= options
    found["classes"] = list(train.classes)
    found["training images"] = _fingerprint(train)
    found["validation images"] = _fingerprint(val)
    return found


def fingerprint(path: Path) -> str:
    """A digest of a model file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ArtefactError(
            f"extensions.distillation.teacher: {path}: can't be read ({error.strerror}); expected a model file; "
            "name one, or leave the block out"
        ) from error


def write_state(path: Path, state: TrainState) -> None:
    """Writes `state`, whole or not at all."""
    content = {
        "format": FORMAT,
        "request": json.dumps(state.request),
        "epoch": state.epoch,
        "step": state.step,
        "learner": state.learner,
        "rows": [list(astuple(row)) for row in state.rows],
        "broken_train": state.broken_train,
        "broken_val": state.broken_val,
    }
    # a file object: of a path, torch does not say which error of the system stopped it
    with atomic(path) as beside, beside.open("wb") as file:
        torch.save(content, file)


def read_state(path: Path) -> TrainState:
    """The state in `path`, on the CPU.

    Raises:
        ArtefactError: it is no state of a format known here.
    """
    with foreign_told(path):
        return _state_from_content(torch.load(path, map_location="cpu", weights_only=True))


@contextmanager
def foreign_told(path: Path) -> Iterator[None]:
    """Runs what takes in the state in `path`.

    Raises:
        ArtefactError: it is torn, of another version, or not of the training that goes on.
    """
    try:
        yield
    except (TrtClsError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load raises whatever its unpickler stumbles over
        reason = f": {error}" if isinstance(error, _Foreign) else ""
        raise ArtefactError(
            f"{path}: can't be read ({type(error).__name__}{reason}); expected the state of a training by this "
            "version; train anew in another folder, from one of its checkpoints by train_config.pretrained_model_path"
        ) from error


class _Foreign(ValueError):
    """A part of a state that can't be one; says which."""


def _state_from_content(content: Any) -> TrainState:
    """Every part typed and ranged, but for the tensors and the optimizer's numbers, which torch checks."""
    _require(isinstance(content, dict) and content.get("format") == FORMAT, "format")
    _require(isinstance(content.get("request"), str), "request")
    request = json.loads(content["request"])
    _require(isinstance(request, dict), "request")
    _require(request.get("--precision") in PRECISIONS and isinstance(request.get("--compile"), bool), "request")
    epoch, step = content.get("epoch"), content.get("step")
    _require(type(epoch) is int and 1 <= epoch <= MOST and type(step) is int and 0 <= step <= MOST, "epoch or step")
    rows = content.get("rows")
    _require(isinstance(rows, list) and all(_is_row(row) for row in rows), "rows")
    broken = [content.get("broken_train"), content.get("broken_val")]
    for names in broken:
        _require(
            isinstance(names, dict) and all(type(text) is str for pair in names.items() for text in pair), "broken"
        )
    learner = content.get("learner")
    _require(
        isinstance(learner, dict) and all(isinstance(learner.get(n), kind) for n, kind in LEARNER.items()), "learner"
    )
    model = learner["model"].items()
    _require(all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in model), "model")
    learner.setdefault("lone", [None] * len(learner["sums"]))
    return TrainState(request, epoch, step, learner, tuple(EpochRow(*row) for row in rows), *broken)


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != len(fields(EpochRow)) or type(row[0]) is not int:
        return False
    return 1 <= row[0] <= MOST and all(type(value) is float and math.isfinite(value) for value in row[1:])


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise _Foreign(part)


def refuse_other_request(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Lets a training go on only as it began.

    Raises:
        RequestError: names what differs.
    """
    different = [name for name in sorted(saved.keys() | asked.keys()) if saved.get(name) != asked.get(name)]
    if different:
        listed = "; ".join(f"{name}: {_shown(saved.get(name))} ≠ {_shown(asked.get(name))}" for name in different)
        raise RequestError(
            f"--resume: {listed}; expected what {path} began with (before the ≠); "
            "go on with that, or train in another folder with -r"
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def flat(name: str, value: Any) -> dict[str, Any]:
    """Field paths and values as JSON gives them back: numbers, text, lists."""
    if is_dataclass(value):
        prefix = f"{name}." if name else ""
        found: dict[str, Any] = {}
        for field in fields(value):
            found |= flat(prefix + field.name, getattr(value, field.name))
        return found
    if value is None:
        return {}
    if isinstance(value, (bool, int, float, str)):
        return {name: value}
    if isinstance(value, tuple):
        return {name: list(value)}
    return {name: dict(value)}


def _fingerprint(folder: ImageFolder) -> str:
    """The number of images and a digest of their names and labels; where the folder stands does not matter."""
    listing = "\n".join(f"{sample.path.relative_to(folder.root)} {sample.label}" for sample in folder.samples)
    return f"{len(folder.samples)} ({hashlib.sha256(listing.encode('utf-8', FOREIGN)).hexdigest()[:8]})"
