"""The folder of one training: where each file stands, and whether a training may start or go on there.

One writer for a results folder: a lock that ends with the process that holds it, however that ends.
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trt_cls import files
from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError

MEETING_PORT = 29400
"""Where torchrun's machines meet by default."""


@dataclass(frozen=True)
class Results:
    """The files below `root`."""

    root: Path

    @property
    def weights(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "weights"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the best validation accuracy."""
        return self.weights / "best.safetensors"

    @property
    def averaged(self) -> Path:
        """The mean of the last checkpoints, where the spec asks for it."""
        return self.weights / "averaged.safetensors"

    @property
    def state(self) -> Path:
        """What --resume goes on from."""
        return self.root / "train_state.pt"

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.root / "experiment_spec.txt"

    @property
    def classmap(self) -> Path:
        """Class names and their indices."""
        return self.root / "classmap.json"

    @property
    def curve(self) -> Path:
        """A row per epoch."""
        return self.root / "training.csv"

    @property
    def status(self) -> Path:
        """A JSON object a line."""
        return self.root / "status.json"

    @property
    def events(self) -> Path:
        """TensorBoard's folder."""
        return self.root / "events"

    def checkpoint(self, arch: str, epoch: int) -> Path:
        """The checkpoint of an epoch, counted from 1."""
        return self.weights / f"{arch.replace('/', '_')}_{epoch:03d}.safetensors"

    def resume_command(self, processes: Processes) -> str:
        """The command that goes on with this training; on several machines it is the one for each of them."""
        program = ["trt-cls"]
        if processes.size > 1:
            program = ["torchrun", *_meeting(), "--nproc-per-node", str(processes.per_machine), "-m", "trt_cls"]
        return shlex.join([*program, "train", "-e", str(self.spec), "-r", str(self.root), "--resume"])


def _meeting() -> list[str]:
    """Options by which torchrun's machines find each other where they did before; none on one machine."""
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    if machines == "1":
        return []
    endpoint = f"{os.environ['MASTER_ADDR']}:{MEETING_PORT}"
    return ["--nnodes", machines, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]


@contextmanager
def open_results(results: Results, *, resume: bool) -> Iterator[None]:
    """The folder, made where it is missing, for this training alone; cleared of what a killed one left half written.

    Raises:
        RequestError: there is a training already, or none to resume, or one that runs; or it can't be written to.
    """
    root = results.root
    if resume and not results.state.exists():
        raise RequestError(
            f"{root}: nothing to resume; expected {results.state.name}, which a training writes before its first step; "
            "train without --resume"
        )
    files.results_folder(root)
    with only_writer(root):
        if not resume:
            _refuse_training(results)
        results.weights.mkdir(exist_ok=True)
        _remove_unfinished(results)
        yield


def _refuse_training(results: Results) -> None:
    root = results.root
    if results.state.exists():
        raise RequestError(
            f"{root}: holds a training already; expected a new folder; go on with that training by --resume, "
            "or name another folder with -r"
        )
    if any(results.weights.glob("*.safetensors")):
        raise RequestError(
            f"{results.weights}: holds checkpoints already; expected a new folder; remove them, "
            "or name another folder with -r"
        )


def _remove_unfinished(results: Results) -> None:
    """Files that a killed training was writing when it died."""
    named = (results.state, results.spec, results.classmap, results.curve, results.status)
    for path in [
        *(beside for file in named for beside in results.root.glob(f".{file.name}.*")),
        *results.weights.glob(".*.safetensors"),
    ]:
        path.unlink(missing_ok=True)


_log = logging.getLogger(__name__)


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Keeps other trainings out of the folder `root`, on a network file system those of other machines too.

    A file system without locks gets a warning, and no protection.

    Raises:
        RequestError: a training that runs has the folder.
    """
    path = root / "training.lock"
    file = _locked(path, root)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: nobody removes the file of another
        file.close()


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
        file.close()  # its holder has just ended, and removed it


def _sign(file: IO[str]) -> None:
    """Writes down who holds the lock, for those that are kept out."""
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
