"""Untrusted files, read without hanging or filling the memory; files written completely or not at all; folders."""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import re
import select
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trt_cls.errors import DataError, RequestError, TrtClsError, causes
from trt_cls.text import FOREIGN, csv_row
from trt_cls.urls import StorePath, location

MOST_TEXT = 2**20
"""Bytes of a small file of text: a class map of 10,000 classes has 300 kB."""
MOST_SHARDS = 1_000_000
EXAMPLE = "DIR/train-{000000..000127}.tar"
_CHUNK = 1 << 20
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}", re.ASCII)
_BESIDE = re.compile(r"\.(.+)(\.[a-z]+)\.[a-z0-9_]{8}\2")
"""The names that `atomic` writes to; the first group is the stem of the file."""
PATIENCE = 10
"""Seconds to wait for the other end of a pipe."""
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def regular_file(path: str | Path) -> Iterator[tuple[int, int]]:
    """An open descriptor of a regular file, and its size in bytes; neither opening nor reading it waits.

    Raises:
        OSError: it can't be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = _opened(path)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise OSError(errno.EINVAL, f"{kind} found, expected a regular file", str(path))
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def read_at_most(descriptor: int, size: int, *, waits: bool = False) -> bytes:
    """The next `size` bytes, fewer where the file ends before; `waits` for what comes through a pipe."""
    parts = []
    while size > 0 and (not waits or _waited_for(descriptor)) and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    import hashlib  # loads OpenSSL, which most commands do without

    digest = hashlib.sha256()
    with regular_file(path) as (descriptor, _):
        while chunk := os.read(descriptor, _CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_small_text(path: str | Path, most: int = MOST_TEXT, expected: str = "a small file of text") -> str:
    """The text of a small file in UTF-8, with a byte-order mark or without; or what comes through a pipe.

    Raises:
        OSError: it can't be read, or nothing comes through the pipe for PATIENCE seconds.
        ValueError: it has more than `most` bytes or is no UTF-8; the message says what was found and expected.
    """
    descriptor = _opened(path)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        content = read_at_most(descriptor, most + 1, waits=not stat.S_ISREG(mode))
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise ValueError(f"more than {most // 1024} KiB found, expected {expected}")
    return text_from_bytes(content, expected)


def text_from_bytes(content: bytes, expected: str = "text") -> str:
    """UTF-8 text, without its byte-order mark.

    Raises:
        ValueError: it is no UTF-8; the message says which byte.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"UTF-16 found, which is not UTF-8, expected {expected}: save it as UTF-8")
    if b"\0" in content:
        raise ValueError(f"a binary file found (byte 0 at {content.index(0)}), expected {expected}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ValueError(f"{found} is not UTF-8, expected {expected}: save it as UTF-8") from None


def is_shards(path: str | Path) -> bool:
    """Whether `path` names shards: a tar file, or several as in `train-{000000..000127}.tar`; or those of a store."""
    return str(location(path)).endswith(".tar") and not os.path.isdir(path)


def shard_paths(pattern: str | Path) -> list[Path]:
    """The tar files that `pattern` names, in order: ranges in braces are counted, padded with zeros as they are.

    Whether a store has them is not asked.

    Raises:
        DataError: a range is none or too long, or a file is missing.
    """
    pattern = location(pattern)
    stored = isinstance(pattern, StorePath)
    parts = _RANGE.split(pattern.url if isinstance(pattern, StorePath) else str(pattern))  # text, first, last, text …
    paths = [parts[0]]
    for first, last, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        count = int(last) - int(first) + 1
        if not 1 <= count <= MOST_SHARDS // len(paths):
            raise DataError(f"{pattern}: {count:,} shards in {{{first}..{last}}}; expected 1 to {MOST_SHARDS:,} in all")
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        numbers = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
        paths = [f"{path}{number}{text}" for path in paths for number in numbers]
    missing = [path for path in paths if not (stored or os.path.isfile(path))]
    if missing:
        found = f"no such file, {len(missing)} of {len(paths)} shards are missing" if len(paths) > 1 else "no such file"
        raise DataError(f"{missing[0]}: {found}; expected tar files; name those that are there, as in {EXAMPLE}")
    return [location(path) for path in paths]


UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_in(size: str) -> int | None:
    """The number of bytes in a text such as 500MB or 1GB; None where the text is not a size."""
    match = re.fullmatch(r"(\d{1,15})\s*([a-z]*)", size.strip().lower(), re.ASCII)
    return int(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None


def cache_folder() -> Path:
    """Where compiled kernels, indices of tars and shards of stores are kept for this user."""
    if own := os.environ.get("TRT_CLS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-cls"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The content is flushed to the disk before the rename, so that a crash leaves the old file or the new one.

    Raises:
        TrtClsError: there is no room for it.
    """
    with room_for(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        beside = Path(name)
        try:
            _mark(handle)
            yield beside
            with beside.open("rb+") as file:  # the block may have replaced the file by a rename
                _mark(file.fileno())
                os.fsync(file.fileno())
                beside.chmod(0o666 & ~_UMASK)
                beside.replace(path)
        finally:
            os.close(handle)
            beside.unlink(missing_ok=True)


def _mark(descriptor: int) -> None:
    """Keeps a file from `remove_left_over` until it is closed."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def remove_left_over(folder: Path, others: Collection[str]) -> None:
    """Removes what processes that were killed left of `atomic` files, not what another one is writing.

    Files with a stem among `others` are left alone: a file system may hide the locks of other machines.
    """
    for name in () if isinstance(folder, StorePath) else os.listdir(folder):
        if (match := _BESIDE.fullmatch(name)) and match[1] not in others:
            with suppress(OSError), (folder / name).open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / name).unlink()


def write_text(path: Path, text: str) -> None:
    r"""Writes `text` as UTF-8, completely or not at all; foreign bytes of names as escapes, `\udcXX`."""
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes a table, completely or not at all; foreign bytes of names as they are."""
    with atomic(path) as beside, beside.open("w", newline="", encoding="utf-8", errors=FOREIGN) as file:
        file.writelines(csv_row(row) for row in rows)


def results_folder(path: Path) -> Path:
    """`path` as a folder that exists and can be written to.

    Raises:
        RequestError: it can't be made or written to, or is in a store.
    """
    if isinstance(path, StorePath):
        raise RequestError(f"{path}: a URL found, expected a folder; name one, and copy the results to the store")
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


def _opened(path: str | Path) -> int:
    """Without waiting: a pipe opens only with a writer otherwise, a serial line with a carrier."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _waited_for(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(PATIENCE * 1000):
        raise TimeoutError(errno.ETIMEDOUT, f"nothing came through it for {PATIENCE} seconds")
    return True


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
    for cause in causes(error):
        for number, reason in NO_ROOM.items():
            if getattr(cause, "errno", None) == number or f"os error {number})" in str(cause):
                return reason
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
