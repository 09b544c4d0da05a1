"""The index of a set of shards: NAME.json, NAME.index.npy and NAME.paths, written by `shards` and validated when read.

Each number in it is checked once, for all rows together, before it is used. Does not know: tar files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.decoding import Origin, decoded, read_bytes
from trt_cls.contract import LONGEST_TEXT, faults_of_classes
from trt_cls.errors import ArtefactError, DataError, one_line
from trt_cls.files import atomic, regular_file, write_text
from trt_cls.store_cache import held
from trt_cls.stores import is_there, written

ROW = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc32", "<u4"), ("path_at", "<u8")]
)
"""An image: number of its shard, its bytes there and their CRC-32, its class or -1, and where its path begins."""
REMEDY = "write the shards again with trt-cls shards"

Rows = NDArray[Any]
"""Of dtype ROW."""
Texts = NDArray[np.uint8]
"""Texts that end with a zero byte."""


@dataclass(frozen=True)
class Shard:
    """A tar file."""

    name: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The content of NAME.json."""

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]


def index_path(shard: Path) -> Path:
    """NAME.json of a shard NAME-000000.tar."""
    return shard.with_name(f"{shard.stem.rpartition('-')[0] or shard.stem}.json")


def write_index(path: Path, index: Index, rows: Rows, paths: Sequence[bytes]) -> None:
    """Writes the three files; NAME.json, which makes them valid, last."""
    with written(path.with_suffix(".paths")) as here, atomic(here) as beside, beside.open("wb") as file:
        file.writelines(text + b"\0" for text in paths)
    with written(path.with_suffix(".index.npy")) as here, atomic(here) as beside:
        np.save(beside, rows)
    with written(path) as here:
        write_text(here, json.dumps({"format": 1, **asdict(index)}, indent=1) + "\n")


def read_index(path: Path) -> tuple[Index, Rows, Texts]:
    """The index in NAME.json, with its rows and paths mapped into memory.

    Raises:
        ArtefactError, DataError: it can't be read, or is no index.
    """
    try:
        with held(path) as file:
            index = decoded(Index, read_bytes(file), Origin(str(path), " the index of shards", REMEDY))
        rows, paths = _mapped_rows(path.with_suffix(".index.npy")), _mapped(path.with_suffix(".paths"))
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror}), expected an index; {REMEDY}") from error
    names = [shard.name for shard in index.shards]
    if other := [name for name in names if not name.endswith(".tar") or "/" in name or "\0" in name]:
        raise DataError(f'{path}: a shard "{other[0][:200]}" found, expected a file in the same folder; {REMEDY}')
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two shards of one name found, expected each once; {REMEDY}")
    fault = next(faults_of_classes(index.classes), None) if index.classes else None
    if fault:
        raise DataError(f"{path}: {fault[0]}: {fault[1]}; {REMEDY}")
    total = sum(shard.samples for shard in index.shards)
    if not total:
        raise DataError(f"{path}: an index of no images found, expected some; {REMEDY}")
    if len(rows) != total:
        raise DataError(f"{path}: {total:,} samples, but {len(rows):,} rows in its .index.npy; {REMEDY}")
    sizes = np.array([min(max(shard.bytes, 0), 2**62) for shard in index.shards], np.uint64)
    require_sound(path, rows, sizes, len(index.classes), len(paths))
    counts = np.bincount(rows["shard"], minlength=len(index.shards))
    for shard, count in zip(index.shards, counts.tolist(), strict=True):
        if shard.samples != count:
            raise DataError(
                f"{path}: {shard.samples:,} samples of {shard.name}, but {count:,} rows in its .index.npy; {REMEDY}"
            )
    return index, rows, paths


def require_sound(path: Path, rows: Rows, sizes: NDArray[np.uint64], classes: int, texts: int) -> None:
    """Refuses rows that point outside of their shards, classes or texts.

    Raises:
        DataError: names the first of them.
    """
    for name, most in (("shard", len(sizes)), ("path_at", texts), ("offset", 2**62)):
        _require(path, rows, name, rows[name] < most, f"expected less than {most:,}")
    labels = rows["label"]
    _require(path, rows, "label", (labels >= -1) & (labels < max(classes, 1)), f"expected -1 to {classes - 1}")
    fits = rows["offset"] + rows["length"] <= sizes[rows["shard"]]
    _require(path, rows, "length", fits, "expected an image that ends inside of its shard")


def text_at(texts: Texts, start: int) -> tuple[bytes, int]:
    """The text that begins at `start`, at most LONGEST_TEXT bytes, and where the next one begins."""
    text = texts[start : start + LONGEST_TEXT].tobytes().partition(b"\0")[0]
    return text, start + len(text) + 1


def _require(path: Path, rows: Rows, name: str, holds: NDArray[np.bool_], expected: str) -> None:
    if not holds.all():
        row = int(np.argmin(holds))
        raise DataError(f"{path}: row {row:,}: {name} {int(rows[name][row]):,} found, {expected}; {REMEDY}")


def _mapped_rows(path: Path) -> Rows:
    try:
        with held(path) as file, regular_file(file):
            rows: Rows = np.lib.format.open_memmap(file, mode="r")  # no pickles and no archives, as np.load would take
    except OSError:
        raise
    except Exception as error:  # broken headers raise ValueError, TypeError, OverflowError, TokenError and more
        raise DataError(f"{path}: no array of numpy ({one_line(error)[:200]}); {REMEDY}") from error
    if rows.dtype != ROW or rows.ndim != 1:
        raise DataError(f"{path}: {str(rows.dtype)[:200]} found, expected rows of {ROW}; {REMEDY}")
    return rows


def _mapped(path: Path) -> Texts:
    with held(path) as file, regular_file(file) as (_, size):
        return np.memmap(file, np.uint8, "r") if size else np.empty(0, np.uint8)


def is_indexed(path: Path) -> bool:
    """Whether `path`, a NAME.json, is there and is an index.

    Raises:
        DataError: it is one, but its arrays are not there.
    """
    if not is_there(path):
        return False
    if is_there(path.with_suffix(".index.npy")):
        return True
    try:
        with held(path) as file:
            decoded(Index, read_bytes(file), Origin(str(path), " the index of shards", REMEDY))
    except (ArtefactError, OSError):
        return False
    raise DataError(f"{path.with_suffix('.index.npy')}: not there, expected beside {path.name}; {REMEDY}")
