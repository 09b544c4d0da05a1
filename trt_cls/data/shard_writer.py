"""Writes images to tar shards with an index: WebDataset's layout, so that other tools read them too.

Images are copied as they are. They are mixed over the shards, so that a few shards have images of all classes; the rows
of the index are in the order of the folder. The same images give the same bytes. Does not know: pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import IO

import numpy as np

from trt_cls.data.samples import ImageFolder, Samples
from trt_cls.data.shard_index import ROW, Index, Rows, Shard, write_index
from trt_cls.errors import DataError, RequestError
from trt_cls.files import atomic, read_at_most, regular_file
from trt_cls.preprocessing.image_file import LARGEST_FILE
from trt_cls.stores import names_in, remove, written

Member = tuple[str, bytes]
"""Name and content."""
BLOCK, END = tarfile.BLOCKSIZE, 2 * tarfile.BLOCKSIZE
SEED = "shards"
COLUMNS = ("shard", "offset", "length", "crc32")


def write_shards(
    folder: ImageFolder, out: Path, name: str, size: int, progress: Callable[[int], None] = lambda images: None
) -> Index:
    """Writes `out`/NAME-000000.tar and so on, each of at most `size` bytes or one image, and their index.

    Raises:
        DataError: an image can't be read.
        RequestError: shards of this name are there already, or images have several labels.
    """
    if folder.samples.table.sets is not None:
        raise RequestError(
            f"{folder.root}: several labels per image (extensions.labels), expected one class; keep files"
        )
    path = out / f"{name}.json"
    mine = re.compile(rf"{name}\.json|{name}-\d{{6}}\.tar")
    taken = sorted(found for found in names_in(out) if mine.fullmatch(found))
    if taken:
        raise RequestError(
            f"{out / taken[0]}: found, expected no shards of this name; remove them, or write others with --name"
        )
    rows = np.zeros(len(folder.samples), ROW)
    paths = list(folder.samples.names())
    rows["label"] = folder.samples.labels
    rows["path_at"][1:] = np.cumsum([len(text) + 1 for text in paths], dtype=np.uint64)[:-1]
    shards: list[Shard] = []
    try:
        for shard in _write_tars(folder.samples, out, name, size, rows, progress):
            shards.append(shard)
        index = Index(folder.classes, tuple(shards))
        write_index(path, index, rows, paths)
    except BaseException:  # Ctrl-C too: all files or none
        for left in (*(shard.name for shard in shards), f"{name}.paths", f"{name}.index.npy"):
            remove(out / left)
        raise
    return index


def _write_tars(
    samples: Samples, out: Path, name: str, size: int, rows: Rows, progress: Callable[[int], None]
) -> Iterator[Shard]:
    """Writes one tar after the other, and the places of the images to `rows`."""
    order = array("q", range(len(samples)))
    Random(SEED).shuffle(order)
    members = ((row, _members(row, samples)) for row in order)
    following, number = next(members, None), 0
    while following is not None:
        shard, count = out / f"{name}-{number:06}.tar", 0
        with written(shard) as here, atomic(here) as beside, beside.open("wb") as file:
            tar = _Tar(file)
            while following is not None and (not count or tar.size_with(following[1]) <= size):
                row, ((_, image), *_) = following
                place = tar.add(following[1])
                for column, value in zip(COLUMNS, (number, place, len(image), zlib.crc32(image)), strict=True):
                    rows[column][row] = value
                count += 1
                progress(1)
                following = next(members, None)
            tar.end()
        number += 1
        yield Shard(shard.name, tar.size, count, tar.digest.hexdigest())


class _Tar:
    """A tar file being written, and the digest of its bytes so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def add(self, members: Sequence[Member]) -> int:
        """Adds members; returns where the content of the first begins."""
        start = self.size + BLOCK
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            self._write(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK))
        return start

    def end(self) -> None:
        """Adds the end mark."""
        self._write(bytes(END))

    def size_with(self, members: Sequence[Member]) -> int:
        """The size of the finished file with `members`."""
        return self.size + sum(BLOCK + len(content) + -len(content) % BLOCK for _, content in members) + END

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.size += len(content)


def _members(row: int, samples: Samples) -> list[Member]:
    """The image of a row, its class and its path."""
    sample, key, path = samples[row], f"{row:08}", os.fsdecode(samples.table.name(row))
    members = [(f"{key}{sample.path.suffix.lower()}", _content(sample.path))]
    if sample.label >= 0:
        members.append((f"{key}.cls", b"%d" % sample.label))
    return [*members, (f"{key}.json", json.dumps({"path": path}).encode())]


def _content(path: Path) -> bytes:
    try:
        with regular_file(path) as (descriptor, size):
            if size > LARGEST_FILE:
                raise DataError(
                    f"{path}: {size:,} bytes found, expected an image of at most {LARGEST_FILE:,}; remove it"
                )
            return read_at_most(descriptor, size)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}), expected an image; repair or remove it") from error
