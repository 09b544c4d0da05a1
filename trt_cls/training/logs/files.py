"""The files of a training: checkpoints, training.csv with a row per epoch, and status.json as TAO writes it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import nn

from trt_cls.contract import Contract
from trt_cls.errors import TrtClsError
from trt_cls.files import write_text
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.training.logs import Averaged, EpochRow, Log
from trt_cls.training.run_folder import RunFolder
from trt_cls.training.state import room_to_save
from trt_cls.urls import redacted

TEXT_SIZE = 100_000
"""About how many bytes an epoch adds to a log."""


class Checkpoints(Log):
    """The model after each epoch, the best one, and the mean of several."""

    def __init__(self, folder: RunFolder, contract: Contract) -> None:
        self._folder, self._contract = folder, contract

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        self._save(self._folder.checkpoint(self._contract.model.arch, rows[-1].epoch), model, rows[-1])
        if best:
            self._save(self._folder.best, model, rows[-1])

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """See `Log.averaged`."""
        self._save(averaged.path, model, averaged.row)

    def _save(self, path: Path, model: nn.Module, row: EpochRow) -> None:
        contract = replace(self._contract, thresholds=row.thresholds or None)
        with room_to_save(path, sum(tensor.nbytes for tensor in model.state_dict().values())):
            save_checkpoint(path, model, contract)


class Curve(Log):
    """training.csv, with all digits, so that two runs can be compared number by number."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        lines = [",".join(rows[-1].figures)]
        lines += [",".join(repr(value) for value in row.figures.values()) for row in rows]
        with room_to_save(self._path, TEXT_SIZE):
            write_text(self._path, "\n".join(lines) + "\n")


class StatusFile(Log):
    """status.json with TAO's keys, and its losses: with the penalty on weights.

    Lines of an earlier run stay, except those of epochs that are repeated.
    """

    def __init__(self, path: Path, n_epochs: int, first_epoch: int) -> None:
        self._path, self._n_epochs = path, n_epochs
        earlier = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        self._lines = [line for line in earlier if _epoch_of(line) < first_epoch]

    def started(self, epoch: int, *, resumed: bool) -> None:
        """See `Log.started`."""
        self._write("STARTED", f"training resumed at epoch {epoch}" if resumed else "training started")

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        row = rows[-1]
        entry = {
            "epoch": row.epoch,
            "max_epoch": self._n_epochs,
            "time_per_epoch": str(timedelta(seconds=seconds)),
            "eta": str(timedelta(seconds=seconds * (self._n_epochs - row.epoch))),
            "graphical": {
                "loss": row.loss + row.penalty,
                "training_accuracy": row.acc,
                "validation_loss": row.val_loss + row.val_penalty,
                "validation_accuracy": row.val_acc,
                "learning_rate": row.lr,
            },
        }
        with room_to_save(self._path, TEXT_SIZE):
            self._write("RUNNING", f"epoch {row.epoch} of {self._n_epochs} done", row, **entry)

    def averaged(self, averaged: Averaged, model: nn.Module) -> None:
        """See `Log.averaged`."""
        self._write("RUNNING", str(averaged), averaged.row, epoch=averaged.row.epoch)

    def failed(self, error: BaseException) -> None:
        """See `Log.failed`."""
        with suppress(OSError, TrtClsError):
            self._write("FAILURE", redacted(error) or type(error).__name__)

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """See `Log.done`."""
        self._write("SUCCESS", f"{ended}; the best epoch is {best.epoch}", best)

    def _write(self, status: str, message: str, validated: EpochRow | None = None, **entry: Any) -> None:
        """Adds a line; `validated` has the key performance indicators."""
        now = time.localtime()
        if validated:
            loss = validated.val_loss + validated.val_penalty
            entry["kpi"] = {"validation_loss": loss, "validation_accuracy": validated.val_acc}
        entry |= {
            "date": f"{now.tm_mon}/{now.tm_mday}/{now.tm_year}",
            "time": f"{now.tm_hour}:{now.tm_min}:{now.tm_sec}",
            "status": status,
            "verbosity": "ERROR" if status == "FAILURE" else "INFO",
            "message": message,
        }
        self._lines.append(json.dumps(entry, ensure_ascii=False))
        write_text(self._path, "\n".join(self._lines) + "\n")


def _epoch_of(line: str) -> float:
    """The epoch of a line of status.json; 0: it is about the training; infinity: not written by this program."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    epoch = entry.get("epoch", 0) if isinstance(entry, dict) else None
    return epoch if isinstance(epoch, int) else math.inf
