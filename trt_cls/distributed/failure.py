"""How processes end together: the first one to fail reports its error, all exit with its status."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trt_cls.errors import TrtClsError

BROKEN_CONNECTION = ("gloo", "nccl", "connection", "peer", "socket", "store")
"""Words in torch's errors when another process has ended; the errors have no type of their own."""
INTERRUPTED = 130
"""The exit status after Ctrl-C."""
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun and `launch.py` set for the processes they start."""
GRACE = 15.0
"""Seconds between SIGTERM and a forced exit."""


class _Terminated(SystemExit):
    """SIGTERM, by which torchrun ends the other processes when one has failed.

    Python raises it at the next call of a function. Where that is the call that ends a block, `ended_together` does not
    see it; the process then ends silently, as another one reports the error.
    """


@contextmanager
def ended_together(store: Any, rank: int, size: int, advice: str) -> Iterator[None]:
    """The first process to fail in the block raises its error; the others exit silently with its status.

    `store` is torch's key-value store that all processes share.

    Raises:
        TrtClsError: another process ended without an error message; `advice` says what to do then.
    """
    before = _on_sigterm(_raise)
    try:
        yield
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        # torchrun terminates the others as soon as one ends: not before the error is reported
        _on_sigterm(signal.SIG_IGN)
        status = _first_status(store, rank, _status(error))
        if status is not None:
            raise SystemExit(status) from error
        if not _by_another(error):
            raise
        raise TrtClsError(
            f"process {rank} of {size}: another one ended without an error (killed, or out of memory?), or all were "
            f"terminated; expected all of them to finish; {advice}"
        ) from error
    if before is not None:
        _on_sigterm(before)


def end_with_launcher() -> None:
    """Ends this process when the torchrun that started it ends, even if that is killed.

    The process gets a SIGTERM, at which a training saves its state, and is forced to exit later.
    """
    if LAUNCHED in os.environ:
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """Ends this process soon after its parent process `parent` ends."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _first_status(store: Any, rank: int, status: int) -> int | None:
    """The exit status of the first process that failed; None if this one is the first."""
    own = f"{rank} {status}"
    try:
        first = store.compare_set("trt_cls/end", "", own).decode()
    except RuntimeError:  # torchrun, which keeps the store, may be gone
        return None
    return None if first == own else int(first.split()[1])


def _status(error: BaseException) -> int:
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def _by_another(error: BaseException) -> bool:
    """Whether the error is a consequence of another process's end, which closes its connections."""
    if isinstance(error, RuntimeError):
        return any(word in str(error).lower() for word in BROKEN_CONNECTION)
    return isinstance(error, _Terminated)


def _raise(number: int, frame: FrameType | None) -> None:
    _on_sigterm(signal.SIG_IGN)
    raise _Terminated(128 + number)


def _on_sigterm(handler: Any) -> Any:
    """Sets the handler and returns the one before; does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)
