"""Tar files of others, in WebDataset's layout: scanned once for their images, then known from a cache.

Members with the same name up to the first dot are one sample: an image, `.cls` with the index of its class, `.json`
with the path that it had. A tar is read to its end without its content being unpacked; names of members are
never used as paths of files. Does not know: pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trt_cls.contract import LONGEST_TEXT, MOST_CLASSES
from trt_cls.data.shard_index import ROW, Rows, Texts, require_sound
from trt_cls.errors import DataError, one_line
from trt_cls.files import atomic, cache_folder, regular_file
from trt_cls.preprocessing.image_file import EXTENSIONS, LARGEST_FILE
from trt_cls.store_cache import held
from trt_cls.stores import ObjectInfo

MOST_HEADER = 2**20
"""Bytes of a header with its extensions, and of a `.json`: the longest path has 4 kB."""
_CHUNK = 2**22
_EXPECTED = "expected a plain tar in WebDataset's layout: KEY.jpg, KEY.cls"


@dataclass
class _Group:
    """The members of one sample."""

    key: str
    image: tarfile.TarInfo | None = None
    label: int = -1
    path: str = ""


@dataclass
class _Found:
    """The samples of a tar so far."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    texts: bytearray = field(default_factory=bytearray)


def scanned(path: Path, info: ObjectInfo | None = None) -> tuple[Rows, Texts]:
    """The images of a tar, as rows of shard 0, and for each its member's name and its path, one behind the other.

    `info`: what its store says of it.

    Raises:
        DataError: it can't be read, is no plain tar, or is truncated.
    """
    try:
        with held(path, info) as here, regular_file(here) as (descriptor, size):
            known = os.fstat(descriptor)
            identity = f"{os.path.realpath(here)}\0{size}"
            if here is path:  # the name of a copy says of which version it is
                identity += f"\0{known.st_mtime_ns}\0{known.st_ino}"
            cached = _cache_of(identity)
            if (found := _from_cache(cached, path, size)) is None:
                found = _scan(path, descriptor, size)
                with suppress(OSError):  # a home that is full or read-only
                    cached.parent.mkdir(parents=True, exist_ok=True)
                    with atomic(cached) as beside, beside.open("wb") as file:
                        np.savez(file, rows=found[0], texts=found[1])
            return found
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or one_line(error)}); {_EXPECTED}") from error


def _cache_of(identity: str) -> Path:
    return cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.npz"


def _from_cache(cached: Path, path: Path, size: int) -> tuple[Rows, Texts] | None:
    # a damaged one is made anew
    with suppress(Exception), cached.open("rb") as file, np.load(file) as content:
        rows, texts = content["rows"], content["texts"]
        if rows.dtype == ROW and texts.dtype == np.uint8 and rows.ndim == texts.ndim == 1:
            require_sound(path, rows, np.array([size], np.uint64), MOST_CLASSES, len(texts))
            return rows, texts
    return None


def _scan(path: Path, descriptor: int, size: int) -> tuple[Rows, Texts]:
    found = _Found()
    keys: set[str] = set()
    group = _Group("")
    for member in _members(path, descriptor, size):
        folder, slash, base = member.name.rpartition("/")
        start, dot, ending = base.partition(".")
        if not start or not dot or start.startswith("__"):
            continue
        if (key := folder + slash + start) != group.key:
            _end(group, found, descriptor)
            if key in keys:
                raise DataError(f'{path}: the key "{key}" stands in it twice, apart; expected each once; write it anew')
            keys.add(key)
            group = _Group(key)
        _add(group, member, ending.lower(), path, descriptor)
    _end(group, found, descriptor)
    if not found.rows:
        raise DataError(f"{path}: no image in it; {_EXPECTED}")
    return np.array(found.rows, ROW), np.frombuffer(bytes(found.texts), np.uint8)


def _members(path: Path, descriptor: int, size: int) -> Iterator[tarfile.TarInfo]:
    """The regular files in the tar, each inside of its bounds."""
    end = 0
    try:
        with tarfile.open(fileobj=_Headers(descriptor), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if archive.offset <= end or member.offset_data < 0 or member.size < 0:
                    raise DataError(f"{path}: a member at byte {member.offset_data:,} that leads back; {_EXPECTED}")
                end = archive.offset
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{path}: truncated: it ends at byte {size:,}, its member {member.name[:200]} at "
                        f"{member.offset_data + member.size:,}; copy it again"
                    )
                if member.isreg() and member.sparse is None and "\0" not in member.name:
                    yield member
            end = archive.offset
    except DataError:
        raise
    except Exception as error:  # tarfile lets ValueError, struct.error and more out of broken headers
        raise DataError(f"{path}: no plain tar, or truncated ({one_line(error)}); {_EXPECTED}") from error
    last = os.pread(descriptor, 512, end)
    if len(last) < 512 or any(last):
        # tarfile takes a broken header for the end
        raise DataError(f"{path}: truncated or damaged at byte {end:,}, where a member or the end should be; copy it")


class _Headers(io.RawIOBase):
    """What tarfile may read of a tar: little at a time, whatever sizes its headers state."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._place = descriptor, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise ValueError(f"a header of {size:,} bytes, expected at most {MOST_HEADER:,}")
        content = os.pread(self._descriptor, size, self._place)
        self._place += len(content)
        return content

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or not 0 <= place < 2**62:
            raise ValueError(f"a place {place} that is not in the file")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place


def _add(group: _Group, member: tarfile.TarInfo, ending: str, path: Path, descriptor: int) -> None:
    """Adds a member to its sample."""
    if f".{ending.rpartition('.')[2]}" in EXTENSIONS and group.image is None:
        group.image = member
    elif ending == "cls":
        content = os.pread(descriptor, min(member.size, 20), member.offset_data)
        if not re.fullmatch(rb"\s*\d{1,9}\s*", content) or int(content) >= MOST_CLASSES:
            expected = f"expected the index of a class, 0 to {MOST_CLASSES - 1}"
            raise DataError(f"{path}: {member.name[:200]}: {content!r} found, {expected}")
        group.label = int(content)
    elif ending == "json" and member.size <= MOST_HEADER:
        with suppress(ValueError, RecursionError):
            content = json.loads(os.pread(descriptor, member.size, member.offset_data))
            named = content.get("path") if isinstance(content, dict) else None
            group.path = named if isinstance(named, str) else ""


def _end(group: _Group, found: _Found, descriptor: int) -> None:
    """Adds a sample that has an image to those found."""
    image = group.image
    if image is None:
        return
    length = min(image.size, 2**32 - 1)
    crc32 = _crc32(descriptor, image.offset_data, length) if length <= LARGEST_FILE else 0
    found.rows.append((0, image.offset_data, length, group.label, crc32, len(found.texts)))
    for text in (image.name, group.path or image.name):
        found.texts += _encoded(text).replace(b"\0", b"")[: LONGEST_TEXT - 1] + b"\0"


def _encoded(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # a surrogate that is no foreign byte
        return text.encode("utf-8", "replace")


def _crc32(descriptor: int, offset: int, length: int) -> int:
    value, end = 0, offset + length
    while offset < end:
        content = os.pread(descriptor, min(_CHUNK, end - offset), offset)
        if not content:
            break
        value = zlib.crc32(content, value)
        offset += len(content)
    return value
