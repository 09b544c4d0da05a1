"""Copies of objects in stores, in a folder of limited size that processes share.

A copy is made by one process at a time, compared with what the index says, and then renamed. The least recently used
copies are dropped, never one that is open. Does not know: how an object is fetched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trt_cls.errors import RequestError, StoreError, TrtClsError, one_line
from trt_cls.files import bytes_in, cache_folder, room_for
from trt_cls.stores import ObjectInfo, described, fetched
from trt_cls.urls import StorePath

DROPPED = 50
"""How often a copy may be dropped from the cache before it is opened."""


def local(path: Path, info: ObjectInfo | None = None) -> Path:
    """A file with the content of `path`: itself, or a copy of the object in the cache.

    Raises:
        DataError: there is no such object.
        StoreError: it can't be copied, or is not what `info` says.
        MissingDependency: the package for this store is not installed.
    """
    if not isinstance(path, StorePath):
        return path
    import hashlib  # loads OpenSSL, which files of this machine do without

    wanted = info or described(path)
    name = hashlib.sha256("\0".join(map(str, (path, *wanted))).encode("utf-8", "surrogateescape")).hexdigest()[:40]
    folder = cache_folder() / "stores"
    copy = folder / f"{name}{path.suffix}"
    try:
        if not _used(copy):
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(copy) as part:
                if part is not None:
                    _fetch(path, wanted, part)
                    _used(part)  # by the clock of the others: the kernel's times of files lag behind it
                    part.replace(copy)
    except OSError as error:
        raise StoreError(
            f"{folder}: the cache of {path} can't be used ({one_line(error)}), expected a folder that can be written; "
            "set TRT_CLS_CACHE to one"
        ) from error
    return copy


@contextmanager
def held(path: Path, info: ObjectInfo | None = None) -> Iterator[Path]:
    """Yields the file of `local`, which is not dropped from the cache until the block ends."""
    if not isinstance(path, StorePath):
        yield path
        return
    descriptor, copy = _held(path, info)
    try:
        yield copy
    finally:
        os.close(descriptor)


def opened(path: StorePath, info: ObjectInfo | None = None) -> int:
    """A descriptor of the file of `local`, which is not dropped from the cache until it is closed.

    Raises:
        StoreError: it can't be copied; no such object is one, too.
    """
    try:
        return _held(path, info)[0]
    except StoreError:
        raise
    except (TrtClsError, OSError) as error:  # an image of it would count as broken
        raise StoreError(one_line(error)) from error


def _held(path: StorePath, info: ObjectInfo | None) -> tuple[int, Path]:
    for _ in range(DROPPED):
        copy = local(path, info)
        with suppress(FileNotFoundError):  # dropped since it was found
            descriptor = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(copy, descriptor):
                return descriptor, copy
            os.close(descriptor)
    raise StoreError(
        f"{path}: its copy in {cache_folder()} was removed {DROPPED} times before it was read; expected a cache with "
        "room for what is read at once; set TRT_CLS_CACHE_SIZE to more"
    )


def _fetch(path: StorePath, wanted: ObjectInfo, part: Path) -> None:
    with room_for(part, max(wanted.bytes, 0), "make room, or set TRT_CLS_CACHE to another folder"):
        _make_room(part.parent, max(wanted.bytes, 0))
        fetched(path, wanted, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())


def _used(copy: Path) -> bool:
    """Whether a copy is there; then it is the most recently used one."""
    try:
        os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _alone(copy: Path) -> Iterator[Path | None]:
    """Yields the file to copy to, which no other process or thread writes; None where one of them has made the copy."""
    lock, part = copy.with_suffix(".lock"), copy.with_suffix(".part")
    while True:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file.fileno()):
                continue  # the one who had it has removed it
            try:
                if _used(copy):
                    yield None
                else:
                    with _new(part):
                        yield part
            finally:
                part.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            return


@contextmanager
def _new(part: Path) -> Iterator[None]:
    """Makes the file; while it is written, and then read as the copy that it becomes, it is not dropped."""
    while True:
        with part.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(part, file.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make_room(folder: Path, needed: int) -> None:
    """Drops copies, the least recently used first, until `needed` bytes fit; those that are open stay."""
    found = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            status = entry.stat()
            found.append((status.st_atime_ns, status.st_size, entry.path))
    used = sum(size for _, size, _ in found)
    most = _limit(folder, used)
    for _, size, name in sorted(found):
        if used + needed <= most:
            break
        used -= size if _dropped(name) else 0


def _limit(folder: Path, used: int) -> int:
    asked = os.environ.get("TRT_CLS_CACHE_SIZE")
    if not asked:
        return (shutil.disk_usage(folder).free + used) // 2
    found = bytes_in(asked)
    if found is None:
        raise RequestError(f'TRT_CLS_CACHE_SIZE "{asked}": expected a number of bytes, as in 500MB or 50GB')
    return found


def _dropped(name: str) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name)
    except OSError:  # in use, or gone
        return False
    finally:
        os.close(descriptor)
    return True
