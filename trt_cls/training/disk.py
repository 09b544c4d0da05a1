"""A full disk, told as one error: the file, the room it needs, the room there is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trt_cls.errors import TrtClsError

NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "larger than allowed"}


@contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """Runs the writing of `path`, about `size` bytes.

    Raises:
        TrtClsError: there is no room for it.
    """
    try:
        yield
    except Exception as error:  # torch and safetensors wrap the system's error in ones of their own
        reason = _reason(error)
        if reason is None:
            raise
        raise TrtClsError(
            f"{path}: can't be written, {reason} ({_mb(size)} needed, {_mb(shutil.disk_usage(path.parent).free)} "
            "free); expected room for it; what was saved before is whole: make room, then go on with --resume"
        ) from error


def _reason(error: BaseException | None) -> str | None:
    while error is not None:
        for number, reason in NO_ROOM.items():
            if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
