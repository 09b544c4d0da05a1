"""Images in tar shards as a dataset: those of `trt-cls shards` by their index, those of others by a scan.

Nothing is unpacked: an image is read from its place in the tar. Does not know: the content of images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.samples import ImageFolder, LabelSets, Sample, Samples, StoredLabels
from trt_cls.data.shard_index import Rows, Texts, index_path, is_indexed, read_index, text_at
from trt_cls.data.tars import scanned
from trt_cls.errors import DataError, did_you_mean
from trt_cls.files import shard_paths
from trt_cls.preprocessing.image_file import EXTENSIONS, Part
from trt_cls.store_cache import local
from trt_cls.stores import STARTED, ObjectInfo, described, require_there
from trt_cls.text import listed
from trt_cls.urls import StorePath

Epochs = Literal["shards", "folder"]
"""Order of an epoch: shard by shard, or as if the images were files in the folder that the shards were made from."""
SCANS = 4


class ShardTable:
    """The images of several shards, as a `samples.Table`; each has one class, or none."""

    sets: LabelSets | None = None

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        rows: Rows,
        texts: Texts,
        index: Path | None,
        infos: Sequence[ObjectInfo | None] | None = None,
    ) -> None:
        """`files`: of each shard the path below `root`; `index`: the NAME.json that `rows` are mapped from, or None.

        `infos`: what the index, or without one the store, says of each shard, where they are in a store.
        """
        self.root, self.files, self.rows, self._texts, self._index = root, files, rows, texts, index
        self._infos = infos
        self.labels: StoredLabels = rows["label"]
        self.groups: NDArray[np.uint32] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which maps the same index; the one of a scan is copied."""
        return self.__dict__ | ({"rows": None, "_texts": None} if self._index else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._index:
            _, self.rows, self._texts = read_index(self._index)

    def sample(self, row: int) -> Sample:
        """The sample of a row."""
        found = self.rows[row]
        number = int(found["shard"])
        file, info = self.root / self.files[number], self._infos[number] if self._infos else None
        part = Part(file, self.member(row), int(found["offset"]), int(found["length"]), int(found["crc32"]), info)
        return Sample(type(file)(str(part)), int(self.labels[row]), part)

    def member(self, row: int) -> str:
        """The name of the image in its shard; nothing in it leads out of there."""
        name = PurePosixPath(os.fsdecode(text_at(self._texts, int(self.rows["path_at"][row]))[0]))
        if self._index:
            return f"{row:08}{name.suffix.lower() if name.suffix.lower() in EXTENSIONS else ''}"
        return "/".join(part for part in name.parts if part not in ("/", "//", ".."))

    def key(self, row: int) -> bytes:
        """The path of the shard below the folder of all, and the image's name in it."""
        return os.fsencode(f"{self.files[self.rows['shard'][row]]}/{self.member(row)}")

    def name(self, row: int) -> bytes:
        """The path that the image had before it was written to the shard; that in the shard where none is known."""
        text, after = text_at(self._texts, int(self.rows["path_at"][row]))
        return text if self._index else text_at(self._texts, after)[0]


def shard_folder(
    pattern: Path, classes: Sequence[str] | None = None, *, allow_missing: bool = False, order: Epochs = "shards"
) -> ImageFolder:
    """The labeled images of shards, with `classes` and `allow_missing` as in `folder.image_folder`.

    Raises:
        ArtefactError, DataError: a shard or its index can't be read, or its classes are fewer than two or not those.
    """
    samples, own = shard_samples(pattern, order)
    table, counts = _table(samples), np.bincount(samples.labels + 1, minlength=len(own) + 1)
    if counts[0]:
        raise DataError(
            f"{pattern}: {counts[0]:,} images without a class; expected a .cls beside each image, or an index"
        )
    there = [name for name, count in zip(own, counts[1:], strict=True) if count]
    if classes is None:
        classes = own
        if len(classes) == 1:
            raise DataError(f"{pattern}: only one class ({classes[0]}); a classifier needs at least two")
    index = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in there if name not in index]:
        hint = did_you_mean(unknown[0], classes)
        raise DataError(f"{pattern}: {listed(unknown)} is not among the {len(classes)} classes{hint}")
    if not allow_missing and (missing := [name for name in classes if name not in set(there)]):
        raise DataError(f"{pattern}: no images of {listed(missing)}; expected some of each class; name more shards")
    if tuple(classes) != own:
        table.labels = np.array([index.get(name, -1) for name in own], np.int32)[table.labels]
    return ImageFolder(table.root, samples, tuple(classes))


def shard_samples(pattern: Path, order: Epochs = "shards") -> tuple[Samples, tuple[str, ...]]:
    """The images of shards, labeled or not, and their classes.

    Raises:
        ArtefactError, DataError: a shard or its index can't be read.
    """
    paths = shard_paths(pattern)
    require_there(paths)
    samples, classes = _opened(paths, order)
    if not samples:
        raise DataError(f"{pattern}: no images in these shards; expected some; name others")
    return samples, classes


def shard_by_shard(paths: Sequence[Path]) -> Callable[[Path], Samples]:
    """What gives the images of one of the shards, in the order of their places; tars without an index are scanned then.

    Raises:
        ArtefactError, DataError: the index can't be read.
    """
    index = index_path(paths[0])
    if not is_indexed(index) or any(index_path(path) != index for path in paths):
        return lambda path: _opened([path], "shards")[0]
    samples, _ = _opened(paths, "shards")
    number = {name: place for place, name in enumerate(_table(samples).files)}
    groups = _table(samples).rows["shard"][samples.rows]

    def of(path: Path) -> Samples:
        return samples[slice(*np.searchsorted(groups, [number[path.name], number[path.name] + 1]))]

    return of


def checksums(samples: Samples) -> NDArray[np.uint32]:
    """The CRC-32 of the bytes of each image, by its shard's index."""
    return np.asarray(_table(samples).rows["crc32"][samples.rows], np.uint32)


def images_sha256(samples: Samples) -> str:
    """Identifies the images."""
    return hashlib.sha256(checksums(samples).astype("<u4").tobytes()).hexdigest()


def object_version(samples: Samples) -> str:
    """The version of the object that images of one shard are in, where its store has versions and it has no index."""
    part = samples[0].part if len(samples) else None
    found = part.info.version if part and part.info else ""
    return "" if found == STARTED else found


def copied(samples: Samples) -> Samples:
    """The images of one shard, which is copied from its store now."""
    if len(samples) and (part := samples[0].part):
        local(part.file, part.info)
    return samples


def one_ahead(load: Callable[[Path], Samples], paths: Sequence[Path]) -> Iterator[Future[Samples]]:
    """`load` of each path; while one is used, the next is loaded in a thread."""
    with ThreadPoolExecutor(1, "trt-cls-next-shard") as pool:
        loading = [pool.submit(load, path) for path in paths[:1]]
        for path in paths[1:]:
            loading.append(pool.submit(load, path))
            yield loading.pop(0)
        yield from loading


def by_shard(samples: Samples) -> dict[Path, Samples]:
    """Images in the order of their shards, divided into those of each shard."""
    table, shard = _table(samples), _table(samples).rows["shard"][samples.rows]
    numbers, starts = np.unique(shard, return_index=True)
    ends = [*starts[1:].tolist(), len(samples)]
    files = [table.root / table.files[number] for number in numbers]
    return {file: samples[start:end] for file, start, end in zip(files, starts.tolist(), ends, strict=True)}


def _table(samples: Samples) -> ShardTable:
    assert isinstance(samples.table, ShardTable)
    return samples.table


def _opened(paths: Sequence[Path], order: Epochs) -> tuple[Samples, tuple[str, ...]]:
    index = index_path(paths[0])
    same = all(index_path(path) == index for path in paths)
    table, classes, chosen = _indexed(index, paths) if same and is_indexed(index) else _scanned(paths)
    if order == "shards":
        order_of = np.lexsort((table.rows["offset"], table.rows["shard"]))
        table.groups = np.ascontiguousarray(table.rows["shard"])
        return Samples(table, order_of if chosen is None else order_of[chosen[order_of]]), classes
    return Samples(table, None if chosen is None else np.flatnonzero(chosen)), classes


def _indexed(path: Path, wanted: Sequence[Path]) -> tuple[ShardTable, tuple[str, ...], NDArray[np.bool_] | None]:
    """The table of an index, its classes, and which of its rows are in the `wanted` shards; None: all."""
    index, rows, texts = read_index(path)
    names = [shard.name for shard in index.shards]
    number = {name: place for place, name in enumerate(names)}
    unknown = [shard.name for shard in wanted if shard.name not in number]
    if unknown:
        raise DataError(
            f"{wanted[0].with_name(unknown[0])}: not among the {len(names)} shards that {path} lists; name those"
        )
    infos = [ObjectInfo(shard.bytes, shard.sha256) for shard in index.shards] if isinstance(path, StorePath) else None
    table = ShardTable(path.parent, names, rows, texts, path, infos)
    if len(wanted) == len(names):
        return table, index.classes, None
    return table, index.classes, np.isin(rows["shard"], [number[shard.name] for shard in wanted])


def _scanned(paths: Sequence[Path]) -> tuple[ShardTable, tuple[str, ...], None]:
    """The table of tars without an index; their classes are the numbers from 0 to the largest."""
    root = type(paths[0])(os.path.commonpath([path.parent for path in paths]))
    infos: list[ObjectInfo | None] = [None] * len(paths)
    with ThreadPoolExecutor(SCANS) as pool:
        if isinstance(root, StorePath):
            infos = list(pool.map(described, paths))
        found = list(pool.map(scanned, paths, infos))
    start = 0
    for number, (rows, texts) in enumerate(found):
        rows["shard"] = number
        rows["path_at"] += np.uint64(start)
        start += len(texts)
    rows, texts = (np.concatenate(columns) for columns in zip(*found, strict=True))
    classes = tuple(str(label) for label in range(int(rows["label"].max()) + 1))
    files = [os.path.relpath(path, root) for path in paths]
    return ShardTable(root, files, rows, texts, None, infos), classes, None
