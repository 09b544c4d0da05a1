"""Long lists of images in little memory: names in one buffer, labels and places in arrays, samples made when asked for.

An image has one class, or in multi-label data a set of classes; `indices`, `members` and `counts` answer for both.

A name takes its bytes below the folder and 12 more: 10 million images of 30 bytes each take 420 MB, where a list of
`Sample` would take 4 GB. Does not know: folders, the content of files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from trt_cls.preprocessing.image_file import Part

StoredLabels = NDArray[np.int32]


def _indices(label: int, labels: tuple[int, ...] | None) -> tuple[int, ...]:
    return (label,) if labels is None else labels


@dataclass(frozen=True)
class Sample:
    """An image and the index of its class; -1: unlabeled, or with `labels`."""

    path: Path
    """Of an image in a shard: the shard's path, and the image's name in it."""
    label: int = -1
    part: Part | None = None
    """Where it lies in a shard; None: `path` is a file."""
    labels: tuple[int, ...] | None = None
    """In multi-label data, the indices of its classes, rising; None: it has one class, or is unlabeled."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The classes of a labeled image."""
        return _indices(self.label, self.labels)

    @property
    def source(self) -> Path | Part:
        """What `preprocessing.images.read` reads."""
        return self.part or self.path


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    path: Path
    reason: str
    label: int = field(default=-1, compare=False)
    """With `labels`, as those of its `Sample`."""
    labels: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def indices(self) -> tuple[int, ...]:
        """The classes of a labeled image."""
        return _indices(self.label, self.labels)


class LabelSets(NamedTuple):
    """The classes of each row in multi-label data, rising: indices[starts[row] : starts[row + 1]]."""

    indices: StoredLabels
    starts: NDArray[np.int64]
    """One more than rows."""

    def of(self, row: int) -> tuple[int, ...]:
        """The classes of a row."""
        return tuple(self.indices[self.starts[row] : self.starts[row + 1]].tolist())

    def members(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], StoredLabels]:
        """As `Samples.members`, of these rows."""
        begins = self.starts[rows]
        sizes = self.starts[rows + 1] - begins
        places = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        without = np.flatnonzero(sizes == 0)
        classes = self.indices[np.repeat(begins, sizes) + within]
        return np.concatenate([places, without]), np.concatenate([classes, np.full(len(without), -1, np.int32)])


class Table(Protocol):
    """The columns that samples are made from."""

    labels: StoredLabels
    """The class of each row; -1: unlabeled, or in `sets`."""
    sets: LabelSets | None
    """None: no multi-label data."""
    groups: NDArray[np.uint32] | None
    """The shard of each row, where the order of an epoch depends on it."""

    def sample(self, row: int) -> Sample:
        """The sample of a row."""

    def key(self, row: int) -> bytes:
        """Its path below the folder of the dataset."""

    def name(self, row: int) -> bytes:
        """The same; of an image in a shard, its path in the folder that the shards were made from."""


class Files:
    """Image files by their paths below a folder."""

    groups: NDArray[np.uint32] | None = None

    def __init__(
        self, root: Path, names: bytes, starts: NDArray[np.uint64], labels: StoredLabels, sets: LabelSets | None
    ) -> None:
        self._root, self._names, self._starts, self.labels, self.sets = root, names, starts, labels, sets

    def sample(self, row: int) -> Sample:
        """The sample of a row."""
        labels = None if self.sets is None else self.sets.of(row)
        return Sample(self._root / os.fsdecode(self.key(row)), int(self.labels[row]), labels=labels)

    def key(self, row: int) -> bytes:
        """The path below the folder."""
        return self._names[int(self._starts[row]) : int(self._starts[row + 1])]

    name = key


class Samples(Sequence[Sample]):
    """A list of samples: rows of a table, in any order."""

    def __init__(self, table: Table, rows: range | NDArray[np.int64] | None = None) -> None:
        self._table = table
        self._rows = range(len(table.labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Samples: ...
    def __getitem__(self, place: int | slice) -> Sample | Samples:
        if isinstance(place, slice):
            return Samples(self._table, self._rows[place])
        return self._table.sample(int(self._rows[place]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_equal, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def table(self) -> Table:
        """What the samples are made from."""
        return self._table

    @property
    def labels(self) -> StoredLabels:
        """The label of each; -1 in multi-label data."""
        return self._table.labels[self._selected]

    def indices(self) -> Iterator[tuple[int, ...]]:
        """The classes of each, as `Sample.indices`."""
        sets = self._table.sets
        if sets is None:
            return ((label,) for label in self.labels.tolist())
        return (sets.of(int(row)) for row in self._rows)

    def members(self) -> tuple[NDArray[np.int64], StoredLabels]:
        """Each class of each image: the image's place in the list, and the class; -1 of an image without any."""
        sets = self._table.sets
        return (np.arange(len(self)), self.labels) if sets is None else sets.members(self.rows)

    @property
    def groups(self) -> NDArray[np.uint32] | None:
        """The shard of each, where the order of an epoch depends on it."""
        return None if self._table.groups is None else self._table.groups[self._selected]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each in the table."""
        return np.asarray(self._rows, np.int64)

    def labeled(self, labels: StoredLabels) -> Samples:
        """The same images with these labels."""
        table = copy(self._table)
        table.sets = None
        table.labels = np.full(len(self._table.labels), -1, np.int32)
        table.labels[self._selected] = labels
        return Samples(table, self._rows)

    @property
    def _selected(self) -> slice | NDArray[np.int64]:
        rows = self._rows
        return slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) and rows.step > 0 else self.rows

    def keys(self) -> Iterator[bytes]:
        """The path of each below the folder of the dataset."""
        return (self._table.key(int(row)) for row in self._rows)

    def names(self) -> Iterator[bytes]:
        """The path of each in the folder that the images are in, or were in before they were written to shards."""
        return (self._table.name(int(row)) for row in self._rows)

    def at(self, places: NDArray[np.int64]) -> Samples:
        """The samples at these places of the list."""
        return Samples(self._table, self.rows[places])


@dataclass(frozen=True)
class ImageFolder:
    """A labeled dataset: the images below one sub-folder per class, class after class, sorted by path; or of shards.

    In multi-label data, see `labels`, the images are sorted by path alone.
    """

    root: Path
    samples: Samples
    """Any sequence of samples may be given."""
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    """Images without a row in the file of labels, and rows without an image."""

    def __post_init__(self) -> None:
        if not isinstance(self.samples, Samples):
            object.__setattr__(self, "samples", of_samples(self.root, self.samples))

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of images of each class."""
        _, classes = self.samples.members()
        return np.bincount(classes[classes >= 0], minlength=len(self.classes))


def files(
    root: Path, groups: Iterable[tuple[int, Sequence[str]]], sets: Sequence[Sequence[int]] | None = None
) -> Samples:
    """The files of several groups, each a label and paths below `root`; with an empty `root` any paths.

    `sets` are the classes of each file in multi-label data, rising.
    """
    names, lengths, labels = bytearray(), [np.zeros(1, np.uint64)], [np.empty(0, np.int32)]
    for label, group in groups:
        encoded = [os.fsencode(name) for name in group]
        names += b"".join(encoded)
        lengths.append(np.fromiter(map(len, encoded), np.uint64, len(encoded)))
        labels.append(np.full(len(encoded), label, np.int32))
    starts = np.cumsum(np.concatenate(lengths), dtype=np.uint64)
    return Samples(Files(root, bytes(names), starts, np.concatenate(labels), None if sets is None else _sets(sets)))


def _sets(sets: Sequence[Sequence[int]]) -> LabelSets:
    starts = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    return LabelSets(np.fromiter(chain.from_iterable(sets), np.int32, int(starts[-1])), starts)


def of_samples(root: Path, samples: Iterable[Sample]) -> Samples:
    """A list of files, below `root` or elsewhere, as `Samples`; all or none of them with `labels`."""
    given = list(samples)
    below = ((s.label, s.path.relative_to(root) if s.path.is_relative_to(root) else s.path) for s in given)
    sets = [sample.indices for sample in given] if any(sample.labels is not None for sample in given) else None
    return files(root, ((label, [str(path)]) for label, path in below), sets)


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other)
