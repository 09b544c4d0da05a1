"""Object stores: requests, which are repeated when they fail, and writing; an object appears complete or not at all.

The only module that imports fsspec, and only where a URL is opened. Begin with `written` and `fetched`; what is read
comes through `store_cache`. Does not know: what is in the files.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from trt_cls.errors import DataError, RequestError, StoreError, TrtClsError, one_line, require
from trt_cls.files import NO_ROOM, cache_folder, file_sha256, results_folder
from trt_cls.urls import StorePath, redacted

T = TypeVar("T")
PACKAGES = {
    "s3": ("s3fs", "cloud"),
    "gs": ("gcsfs", "gcs"),
    "https": ("aiohttp", "cloud"),
    "http": ("aiohttp", "cloud"),
    "memory": ("fsspec", "cloud"),
}
"""Of each scheme the package that it needs beside fsspec, and the extra that installs both."""
READ_ONLY = ("https", "http")
UNSHARED = ("memory",)
"""Schemes whose content is lost when the process ends."""
ATTEMPTS = 5
"""How often something is tried."""
WAIT = 0.5
"""Seconds before the second attempt; twice as long before each further one."""
PATIENCE, SLOWEST = 60.0, 200_000
"""An object may take PATIENCE seconds, and one more for each SLOWEST bytes."""
LARGEST_UNKNOWN = 1 << 36
"""Bytes of an object whose size its store does not say."""
LOOKED_FOR = 16
"""Objects that are looked for at once where a store has no lists."""
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "updated", "mtime", "created", "Content-MD5")
_FINAL = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NonHttpUrlRedirectClientError")
_BUSY = (408, 425, 429)
"""Statuses from 400 to 499 that another attempt may change."""
STARTED = f"{os.getpid()} {time.time_ns()}"
"""The version of an object whose store says none: a process knows no copy of others."""
_jitter = random.SystemRandom()
"""Not the generator that trainings seed."""


class ObjectInfo(NamedTuple):
    """What is known of an object before it is copied."""

    bytes: int
    """-1: not known."""
    sha256: str = ""
    """By the index of its shards."""
    version: str = ""
    """By the store."""


class _Damaged(Exception):
    """A copy is not what was expected."""


class _Refused(StoreError):
    """An object may not be read or written, or a folder not be listed."""


def is_there(path: Path) -> bool:
    """Whether a file is there, or an object that may be read."""
    if not isinstance(path, StorePath):
        return path.is_file()
    try:
        described(path)
    except (DataError, _Refused):
        return False
    return True


def names_in(folder: Path) -> frozenset[str]:
    """The names in a folder, or of the objects right below it; none where there is no such folder."""
    if not isinstance(folder, StorePath):
        return frozenset(os.listdir(folder) if folder.is_dir() else ())
    try:
        found = _retried(folder, partial(_done, folder, "ls", 0, detail=False))
    except DataError:
        return frozenset()
    return frozenset(name.rstrip("/").rpartition("/")[2] for name in found)


def require_there(paths: Sequence[Path]) -> None:
    """Refuses objects that are missing from their store, where the store can report that.

    Raises:
        DataError: names the first of them.
    """
    stored = [path for path in paths if isinstance(path, StorePath)]
    missing: list[StorePath] = []
    if stored and stored[0].scheme in READ_ONLY:
        with ThreadPoolExecutor(LOOKED_FOR) as pool:
            missing = [path for path, there in zip(stored, pool.map(is_there, stored), strict=True) if not there]
    elif stored:
        with suppress(_Refused):  # to list; each may be readable still
            names = {folder: names_in(folder) for folder in {path.parent for path in stored}}
            missing = [path for path in stored if path.name not in names[path.parent]]
    if missing:
        raise DataError(
            f"{missing[0]}: no such object, or none that may be read; {len(missing)} of {len(paths)} shards are "
            "missing; expected tar files; name those that are there"
        )


def require_shared(path: Path) -> None:
    """Refuses what other processes of this machine can't see.

    Raises:
        RequestError: `path` is in the memory of this process.
    """
    if isinstance(path, StorePath) and path.scheme in UNSHARED:
        raise RequestError(f"{path}: the memory of one process, which loader processes do not see; set n_workers: 0")


def output_folder(path: Path) -> Path:
    """`path` as a folder that can be written to.

    Raises:
        RequestError: it can't be made, is on a server that takes no files, or would be gone with this process.
    """
    if not isinstance(path, StorePath):
        return results_folder(path)
    _store(path)
    if path.scheme in READ_ONLY:
        raise RequestError(f"{path}: {path.scheme}:// can't be written, expected a folder, s3:// or gs://")
    if path.scheme in UNSHARED:
        raise RequestError(
            f"{path}: the memory of this process, of which nothing is left when it ends; expected a folder, s3:// or "
            "gs://"
        )
    return path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields the file to write: `path` itself, or one that becomes the object when the block ends without an error.

    A file of this machine appears completely or not at all only if it is written by `files.atomic`.

    Raises:
        StoreError: the store does not take it.
    """
    if not isinstance(path, StorePath):
        yield path
        return
    with TemporaryDirectory(prefix="trt-cls-") as folder:
        beside = Path(folder) / path.name
        yield beside
        _retried(path, partial(_put, path, beside), "can't be written")


def remove(path: Path) -> None:
    """Removes a file or object, where it can be removed."""
    if not isinstance(path, StorePath):
        path.unlink(missing_ok=True)
        return
    with suppress(Exception):  # on the way out, because of an error that is reported
        _done(path, "rm_file", 0)


def _put(path: StorePath, file: Path) -> None:
    _done(path, "put_file", file.stat().st_size, first=str(file))


def _store(path: StorePath) -> Any:
    """Fsspec's file system."""
    if path.scheme not in PACKAGES:
        raise RequestError(f"{path}: {path.scheme}:// found, expected one of {', '.join(PACKAGES)}, or a folder")
    if "@" in path.url.partition("://")[2].partition("/")[0] and path.scheme not in READ_ONLY:
        raise RequestError(f"{path}: keys found in the URL, expected them in the environment, as {path.scheme} has it")
    package, extra = PACKAGES[path.scheme]
    fsspec = require("fsspec", f"{path.scheme}://", extra)
    module = require(package, f"{path.scheme}://", extra)
    options: dict[str, Any] = {}
    if path.scheme in READ_ONLY:
        limits = module.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
    return fsspec.filesystem(path.scheme, use_listings_cache=False, **options)


def _done(path: StorePath, method: str, size: int, *args: str, first: str = "", **options: Any) -> Any:
    """The result of a method of the file system, which may take the time that `size` bytes need."""
    store = _store(path)
    given = (*((first,) if first else ()), store._strip_protocol(path.url), *args)
    if not store.async_impl:
        return getattr(store, method)(*given, **options)
    limit = PATIENCE + max(size, 0) / SLOWEST
    sync = require("fsspec.asyn", f"{path.scheme}://", "cloud", package="fsspec").sync
    return sync(store.loop, getattr(store, f"_{method}"), *given, timeout=limit, **options)


def _retried(path: StorePath, action: Callable[[], T], failed: str = "can't be read") -> T:
    """The result of `action`, tried again where that may help."""
    reason, attempt = "", 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1) * (0.5 + _jitter.random()))
        try:
            return action()
        except TrtClsError:
            raise
        except Exception as error:  # each store has errors of its own
            cause = _cause(error)
            status = getattr(cause, "status", 0)
            ours = os.path.isabs(name := str(getattr(cause, "filename", ""))) and name.startswith(str(cache_folder()))
            if (isinstance(cause, FileNotFoundError) and not ours) or status in (404, 410):
                raise DataError(f"{path}: no such object; expected one; check the name") from None
            if getattr(cause, "errno", None) in NO_ROOM:
                raise
            if isinstance(cause, PermissionError) or status in (401, 403):
                found = redacted(one_line(cause))[:300]
                raise _Refused(f"{path}: {failed} ({found}); expected one that you may use; check the keys") from None
            reason = redacted(one_line(cause))[:300]
            if "Timeout" in type(cause).__name__:
                reason = f"slower than {PATIENCE:g} seconds and {SLOWEST / 1e6:g} MB/s"
            if type(cause).__name__ in _FINAL or (400 <= status < 500 and status not in _BUSY):
                break
    # not "from": the errors of others have the URL with its secrets
    raise StoreError(
        f"{path}: {failed}, tried {attempt + 1} times ({reason}); expected a store that answers with what was put "
        "there; check it, then start again"
    ) from None


def _cause(error: Exception) -> BaseException:
    """What happened: over HTTP any failure to look at an object is a FileNotFoundError."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def described(path: StorePath) -> ObjectInfo:
    """What a store reports about an object.

    Raises:
        DataError: there is no such object.
        StoreError: it can't be read.
    """
    found = _retried(path, partial(_done, path, "info", 0))
    versions = [f"{name} {found[name]}" for name in _VERSIONS if found.get(name)]
    size = found.get("size")
    return ObjectInfo(size if isinstance(size, int) else -1, "", " ".join(versions) or STARTED)


def fetched(path: StorePath, wanted: ObjectInfo, file: Path) -> None:
    """Writes an object to `file`, compared with what is known of it.

    Raises:
        DataError: there is no such object.
        StoreError: it can't be read, or is not what is `wanted`.
    """
    _retried(path, partial(_copy, path, wanted, file))


def _copy(path: StorePath, wanted: ObjectInfo, part: Path) -> None:
    most = wanted.bytes if wanted.bytes >= 0 else LARGEST_UNKNOWN
    _done(path, "get_file", wanted.bytes, str(part), callback=_limited(most))
    found = part.stat().st_size
    if wanted.bytes not in (-1, found):
        raise _Damaged(f"truncated or changed: {found:,} bytes found, {wanted.bytes:,} expected")
    if wanted.sha256 and (digest := file_sha256(part)) != wanted.sha256:
        raise _Damaged(f"changed: SHA-256 {digest[:16]} found, {wanted.sha256[:16]} expected by its index")


def _limited(most: int) -> Any:
    """What fsspec reports each piece of an object to, so that one without an end does not fill the disk."""

    def raised(_size: int | None, value: int, **_: Any) -> None:
        if value > most:
            raise _Damaged(f"truncated or changed: more than {most:,} bytes found, {most:,} expected")

    callbacks = require("fsspec.callbacks", "object stores", "cloud", package="fsspec")
    return callbacks.Callback(hooks={"size": raised})
