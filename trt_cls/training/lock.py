"""One writer for a results folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trt_cls.errors import RequestError

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
