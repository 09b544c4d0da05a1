"""Files that appear whole or not at all, and folders that results go to."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trt_cls.errors import RequestError, TrtClsError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The content is flushed to the disk before the rename, so that a crash leaves the old file or the new one.

    Raises:
        TrtClsError: there is no room for it.
    """
    with room_for(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        beside = Path(name)
        try:
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(0o666 & ~_UMASK)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8")


def results_folder(path: Path) -> Path:
    """`path` as a folder that exists and can be written to.

    Raises:
        RequestError: it can't be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RequestError(
            f"{path}: results can't be written there ({error.strerror}); expected a folder that you may write to; "
            "name another with -r"
        ) from error
    return path


def _current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _current_umask()

NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "larger than allowed"}


@contextmanager
def room_for(path: Path, size: int = 0, advice: str = "make room, then start again") -> Iterator[None]:
    """Runs the writing of `path`, about `size` bytes, where that is known.

    Raises:
        TrtClsError: there is no room for it.
    """
    try:
        yield
    except Exception as error:  # torch and safetensors wrap the system's error in ones of their own
        reason = _no_room(error)
        if reason is None:
            raise
        needed = f"{_mb(size)} needed, " if size else ""
        raise TrtClsError(
            f"{path}: can't be written, {reason} ({needed}{_mb(shutil.disk_usage(path.parent).free)} free); expected "
            f"room for it; {advice}"
        ) from error


def _no_room(error: BaseException | None) -> str | None:
    while error is not None:
        for number, reason in NO_ROOM.items():
            if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
