"""The folder of one training: the paths of its files, and a lock, so that one training at a time writes there.

The lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trt_cls import files
from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError

RENDEZVOUS_PORT = 29400
"""Where torchrun's machines meet by default."""

_log = logging.getLogger(__name__)


class RunFolder:
    """The files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.weights = root / "weights"
        """Folder of the checkpoints."""
        self.best = self.weights / "best.safetensors"
        """The checkpoint of the epoch with the best validation accuracy."""
        self.averaged = self.weights / "averaged.safetensors"
        """The mean of the last checkpoints, where the spec asks for it."""
        self.state = root / "train_state.pt"
        """What --resume needs."""
        self.spec = root / "experiment_spec.txt"
        """The resolved spec."""
        self.classmap = root / "classmap.json"
        """Class names and their indices."""
        self.split = root / "split.csv"
        """Which image is trained on and which is held out, where the spec has a validation_split."""
        self.curve = root / "training.csv"
        """A row per epoch."""
        self.page = root / "training.html"
        """Curves, classes over time, pictures as the network sees them."""
        self.status = root / "status.json"
        """A JSON object per line."""
        self.events = root / "events"
        """TensorBoard's folder."""

    def checkpoint(self, arch: str, epoch: int) -> Path:
        """The checkpoint of an epoch, counted from 1."""
        return self.weights / f"{arch.replace('/', '_')}_{epoch:03d}.safetensors"

    def resume_command(self, processes: Processes) -> str:
        """The command that resumes this training; on several machines, the command for each of them."""
        program = ["trt-cls"]
        if processes.size > 1:
            program = ["torchrun", *_rendezvous(), "--nproc-per-node", str(processes.per_machine), "-m", "trt_cls"]
        return shlex.join([*program, "train", "-e", str(self.spec), "-r", str(self.root), "--resume"])


@contextmanager
def locked_run_folder(folder: RunFolder, *, resume: bool) -> Iterator[None]:
    """Creates and locks the folder for this training, and removes files that a killed one left half written.

    Raises:
        RequestError: it holds a training already, or none to resume, or one that runs; or it can't be written to.
    """
    root = folder.root
    if resume and not folder.state.exists():
        raise RequestError(
            f"{root}: nothing to resume; expected {folder.state.name}, which a training writes before its first step; "
            "train without --resume"
        )
    files.results_folder(root)
    with only_writer(root):
        if not resume:
            _refuse_other_training(folder)
        folder.weights.mkdir(exist_ok=True)
        _remove_unfinished(folder)
        yield


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Locks the folder `root` against other trainings, on a network file system those of other machines too.

    On a file system without locks it warns, and does not protect.

    Raises:
        RequestError: a training that runs has the folder.
    """
    path = root / "training.lock"
    file = _locked(path, root)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that no process removes another's file
        file.close()


def _rendezvous() -> list[str]:
    """Torchrun's options with which the machines find each other again; none on one machine."""
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    if machines == "1":
        return []
    endpoint = f"{os.environ['MASTER_ADDR']}:{RENDEZVOUS_PORT}"
    return ["--nnodes", machines, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]


def _refuse_other_training(folder: RunFolder) -> None:
    if folder.state.exists():
        raise RequestError(
            f"{folder.root}: holds a training already; expected a new folder; continue that training with --resume, "
            "or name another folder with -r"
        )
    if any(folder.weights.glob("*.safetensors")):
        raise RequestError(
            f"{folder.weights}: holds checkpoints already; expected a new folder; remove them, "
            "or name another folder with -r"
        )


def _remove_unfinished(folder: RunFolder) -> None:
    """Removes files that a killed training was writing."""
    for file in (folder.state, folder.spec, folder.classmap, folder.split, folder.curve, folder.page, folder.status):
        for beside in folder.root.glob(f".{file.name}.*"):
            beside.unlink(missing_ok=True)
    for beside in folder.weights.glob(".*.safetensors"):
        beside.unlink(missing_ok=True)


def _locked(path: Path, root: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise RequestError(_taken(file, root)) from error
        except OSError as error:
            _log.warning(
                "%s: its file system has no locks (%s): nothing keeps a second training out of it", root, error.strerror
            )
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                _sign(file)
                return file
        file.close()  # its owner has just ended, and removed it


def _sign(file: IO[str]) -> None:
    """Writes the owner of the lock into it, for error messages."""
    with suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()


def _taken(file: IO[str], root: Path) -> str:
    file.seek(0)
    signed = re.fullmatch(r"(\d{1,10}) ([\w.-]{1,255})\n", file.read(300))
    who = f"process {signed[1]} on {signed[2]}" if signed else "another process"
    end = f"end it (kill {signed[1]}), " if signed else ""
    return f"{root}: {who} trains in this folder; expected one training at a time; wait, {end}or name another with -r"
