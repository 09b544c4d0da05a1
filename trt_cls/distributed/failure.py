"""How processes end together: one of them says why, all of them exit with its status."""

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
"""What torch's errors speak of when another process is gone; they have no type of their own."""
INTERRUPTED = 130
"""The exit status after Ctrl-C."""


LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun, and by `launch`, for the processes that they start."""
GRACE = 15.0
"""Seconds between SIGTERM and the end."""


class _ToldToEnd(BaseException):
    """SIGTERM came, which is how torchrun ends the others when one has failed; no Exception, as Ctrl-C is none."""


@contextmanager
def ended_together(store: Any, rank: int, size: int, advice: str) -> Iterator[None]:
    """Leaves the word to the first process that fails in the block; `store` is what all of them share.

    The process that has it raises its error, the others exit with its status.

    Raises:
        TrtClsError: another process has ended without a word; `advice` says what to do then.
    """
    before = _on_sigterm(_raise)
    try:
        yield
    except (Exception, KeyboardInterrupt, _ToldToEnd) as error:
        # torchrun tells all to end as soon as one has: not before the word is out
        _on_sigterm(signal.SIG_IGN)
        status = _first_status(store, rank, _status(error))
        if status is not None:
            raise SystemExit(status) from error
        if not _by_another(error):
            raise
        raise TrtClsError(
            f"process {rank} of {size}: another one ended without a word (killed, or out of memory?), or all were told "
            f"to end; expected all of them to the end; {advice}"
        ) from error
    if before is not None:
        _on_sigterm(before)


def end_with_launcher() -> None:
    """From now on this process ends when the torchrun that started it does, which may be killed.

    It gets a SIGTERM, at which a training saves its state, and is ended if that does not help.
    """
    if LAUNCHED in os.environ:
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """From now on this process ends soon after `parent`, which started it."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _first_status(store: Any, rank: int, status: int) -> int | None:
    """The exit status of the process that has said why all end; None if that is this one's to say."""
    own = f"{rank} {status}"
    try:
        said = store.compare_set("trt_cls/end", "", own).decode()
    except RuntimeError:  # torchrun, which keeps the store, may be gone
        return None
    return None if said == own else int(said.split()[1])


def _status(error: BaseException) -> int:
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def _by_another(error: BaseException) -> bool:
    """Whether another process's end is the reason: it closes its connections, and has had the word by then."""
    if isinstance(error, RuntimeError):
        return any(word in str(error).lower() for word in BROKEN_CONNECTION)
    return isinstance(error, _ToldToEnd)


def _raise(number: int, frame: FrameType | None) -> None:
    _on_sigterm(signal.SIG_IGN)
    raise _ToldToEnd


def _on_sigterm(handler: Any) -> Any:
    """Sets the handler and returns the one before; outside of the main thread, which gets the signals, does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)
