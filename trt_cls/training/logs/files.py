"""What a training writes down as text: a row per epoch in training.csv, and TAO's status.json."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from trt_cls.files import write_text


@dataclass(frozen=True)
class EpochRow:
    """One epoch, counted from 1; losses include the penalty on weights."""

    epoch: int
    acc: float
    """Training accuracy while the weights changed, against the likelier label of a mixed image."""
    loss: float
    lr: float
    """Of the epoch's last step."""
    val_acc: float
    val_loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: validation accuracy, then a lower validation loss."""
        return self.val_acc, -self.val_loss


@dataclass(frozen=True)
class Averaged:
    """The mean of the checkpoints of several epochs, and what validation says of it; the loss includes the penalty."""

    path: Path
    first_epoch: int
    last_epoch: int
    val_acc: float
    val_loss: float

    def __str__(self) -> str:
        return (
            f"mean of epochs {self.first_epoch} to {self.last_epoch}: "
            f"val_acc {self.val_acc:.4f}, val_loss {self.val_loss:.4f}"
        )


def epochs_without_gain(rows: Sequence[EpochRow]) -> int:
    """How many epochs at the end have not raised val_acc above all before."""
    return rows[-1].epoch - max(rows, key=lambda row: row.val_acc).epoch if rows else 0


def write_curve(path: Path, rows: Sequence[EpochRow]) -> None:
    """Writes training.csv with all digits, so that two runs can be compared number by number."""
    lines = [",".join(field.name for field in fields(EpochRow))]
    lines += [",".join(repr(value) for value in astuple(row)) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


class StatusFile:
    """status.json with TAO's keys; lines of an earlier run stay, but for those of epochs that are done again."""

    def __init__(self, path: Path, first_epoch: int) -> None:
        self._path = path
        earlier = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        self._lines = [line for line in earlier if _epoch_of(line) < first_epoch]

    def write(self, status: str, message: str, **more: Any) -> None:
        """Adds a line; `status` is STARTED, RUNNING, SUCCESS or FAILURE."""
        now = time.localtime()
        entry = {
            **more,
            "date": f"{now.tm_mon}/{now.tm_mday}/{now.tm_year}",
            "time": f"{now.tm_hour}:{now.tm_min}:{now.tm_sec}",
            "status": status,
            "verbosity": "ERROR" if status == "FAILURE" else "INFO",
            "message": message,
        }
        self._lines.append(json.dumps(entry, ensure_ascii=False))
        write_text(self._path, "\n".join(self._lines) + "\n")

    def epoch(self, row: EpochRow, n_epochs: int, seconds: float) -> None:
        """Adds the line of an epoch that took `seconds`."""
        self.write(
            "RUNNING",
            f"epoch {row.epoch} of {n_epochs} done",
            epoch=row.epoch,
            max_epoch=n_epochs,
            time_per_epoch=str(timedelta(seconds=seconds)),
            eta=str(timedelta(seconds=seconds * (n_epochs - row.epoch))),
            graphical={
                "loss": row.loss,
                "training_accuracy": row.acc,
                "validation_loss": row.val_loss,
                "validation_accuracy": row.val_acc,
                "learning_rate": row.lr,
            },
            kpi={"validation_loss": row.val_loss, "validation_accuracy": row.val_acc},
        )


def _epoch_of(line: str) -> float:
    """The epoch that a line of status.json is about; 0: the whole training; infinity: no line of ours."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    epoch = entry.get("epoch", 0) if isinstance(entry, dict) else None
    return epoch if isinstance(epoch, int) else math.inf
