"""Labels for shards, each exactly once: a table per shard that appears completely or not at all, then a merged one.

OUT/STEM.csv (or .parquet) has the rows of each image that `infer -r` writes: one for each class that is named, else one
without a label. OUT/STEM.json says what it was made with and is written last: a shard that has one is done, so a job
that was killed is started again as it was; two processes that label one shard write the same. OUT/shards.HASH.json
lists the shards that a job was asked for. Does not know: how an image is read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

from trt_cls.artefacts.decoding import Origin, decoded, read_bytes
from trt_cls.artefacts.sidecar import file_sha256
from trt_cls.contract import Contract
from trt_cls.data.samples import Samples
from trt_cls.data.shards import images_sha256, object_version
from trt_cls.engines.engine import Answered
from trt_cls.errors import DataError, RequestError, TrtClsError, one_line, require
from trt_cls.evaluation.prediction_sets import decision
from trt_cls.files import atomic, remove_left_over, write_csv, write_text
from trt_cls.store_cache import held
from trt_cls.stores import described, names_in, written
from trt_cls.text import FOREIGN, csv_row, listed
from trt_cls.urls import StorePath

T = TypeVar("T")
TableFormat = Literal["csv", "parquet"]
OutputFormat = TableFormat | Literal["safetensors"]
"""Endings of the outputs of shards; the last one is that of `shard_answers`."""
FORM_ENDINGS = (".csv", ".parquet", ".safetensors")
COLUMNS = ("shard", "index", "key", "path", "label", "confidence", "error")
LIST, RESULT = "shards.", "result"
"""What names of lists of shards begin with, and the name of the table of all: no shard may have them."""
REMEDY = "remove it and label the shard again"

Answer = Callable[[Samples], Generator[Answered]]
"""The probabilities of samples in batches, such as `answers` with an engine."""
Row = tuple[str, int, str, str, str, str, str]


@dataclass(frozen=True)
class ShardRecord:
    """The content of OUT/STEM.json."""

    model_sha256: str
    options: dict[str, str | int]
    samples: int
    rows: int
    skipped: int
    images_sha256: str
    """Of the CRC-32s of the images, as little-endian numbers."""
    output_sha256: str
    object_version: str = ""
    """By the store, of a tar of others; the images of other shards are known without a copy."""


@dataclass(frozen=True)
class ShardList:
    """The content of OUT/shards.HASH.json: jobs with other shards have files of their own."""

    shards: tuple[str, ...]


@dataclass(frozen=True)
class Labeling:
    """What the labels of all shards have in common."""

    out: Path
    model_sha256: str
    form: OutputFormat
    provider: str
    batch_size: int
    backend: str = ""
    """What answers, as `Engine.backend`; needed to write probabilities."""

    @property
    def options(self) -> dict[str, str | int]:
        """What the outputs depend on, beside the model and the images."""
        return {"format": self.form, "provider": self.provider, "batch_size": self.batch_size}

    def begin(self, shards: Sequence[Path], others: Sequence[Path] = ()) -> None:
        """Adds the shards to those that the folder is for; `others` of them are left to other processes.

        Raises:
            ArtefactError, RequestError: two have the same name, or one has a name that is taken; the folder holds
                outputs of another model, or with other options.
        """
        stems = [shard.stem for shard in shards]
        for stem in (*{stem for stem in stems if stem == RESULT or stem.startswith((".", LIST))},):
            raise RequestError(
                f"{stem}.tar: the name is taken in a folder of labels; expected another; rename the shard"
            )
        if len(set(stems)) < len(stems):
            twice = next(stem for place, stem in enumerate(stems) if stem in stems[:place])
            raise RequestError(
                f"{twice}.tar: two shards of this name; expected different ones; label them into two folders"
            )
        if self.form == "parquet":
            _parquet()
        remove_left_over(self.out, {shard.stem for shard in others})
        vars(self).pop("_there", None)
        there = self._there
        for name in sorted(there):
            stem, ending = os.path.splitext(name)
            if ending in FORM_ENDINGS and f"{stem}.json" in there:
                self._require_alike(self.out / f"{stem}.json")
                break  # the others were refused if they are not like this one
        every = sorted(shard.name for shard in shards)
        path = self.out / f"{LIST}{hashlib.sha256(os.fsencode(chr(0).join(every))).hexdigest()[:16]}.json"
        if path.name not in there:
            with written(path) as here:
                write_text(here, json.dumps({"shards": every}, indent=1) + "\n")

    def _has(self, path: Path) -> bool:
        """Whether a file is in the folder; in a store whether it was at the beginning, by one list of all."""
        return path.name in self._there if isinstance(path, StorePath) else path.exists()

    @cached_property
    def _there(self) -> frozenset[str]:
        return names_in(self.out)

    def is_done(self, shard: Path) -> bool:
        """Whether the labels of a shard are there.

        Raises:
            ArtefactError, RequestError: they are of another model, or made with other options.
        """
        described, output = self.out / f"{shard.stem}.json", self.out / f"{shard.stem}.{self.form}"
        if not self._has(described):
            return False
        self._require_alike(described)
        return self._has(output)

    def _require_alike(self, described: Path) -> None:
        made = _decoded(ShardRecord, described)
        for name, wanted in (("model_sha256", self.model_sha256), ("options", self.options)):
            if (found := getattr(made, name)) != wanted:
                raise RequestError(
                    f"{described}: {name} {found} found, expected {wanted}; name what it was made with, or another "
                    "folder with -o"
                )

    def require_of(self, shard: Path, samples_of: Callable[[Path], Samples]) -> None:
        """Refuses an output of other images than the shard has, of one that had this name.

        An object of the version that was labeled is not copied to know its images.

        Raises:
            ArtefactError, RequestError: it is, or it can't be read.
        """
        made = self.made(shard)
        if isinstance(shard, StorePath) and made.object_version and described(shard).version == made.object_version:
            return
        if made.images_sha256 != images_sha256(samples_of(shard)):
            raise RequestError(
                f"{self.out / shard.stem}.json: made of other images than those of {shard}; expected the same; "
                "remove it, or name another folder with -o"
            )

    def label(
        self, answer: Answer, contract: Contract, shard: Path, samples: Samples, progress: Callable[[int], None]
    ) -> ShardRecord:
        """Writes the labels of a shard.

        Raises:
            DataError: two of its images have one name.
            TrtClsError: as `answer`.
        """
        with written(self.out / f"{shard.stem}.{self.form}") as output:
            rows, skipped = self.write(output, answer, contract, shard, samples, progress)
            made = ShardRecord(
                self.model_sha256,
                self.options,
                len(samples),
                rows,
                skipped,
                images_sha256(samples),
                file_sha256(output),
                object_version(samples),
            )
        with written(self.out / f"{shard.stem}.json") as described:
            write_text(described, json.dumps(asdict(made), indent=1) + "\n")
        return made

    def write(
        self,
        output: Path,
        answer: Answer,
        contract: Contract,
        shard: Path,
        samples: Samples,
        progress: Callable[[int], None],
    ) -> tuple[int, int]:
        """Writes what was answered to a shard's images; returns the numbers of rows and of skipped images."""
        rows, skipped = _rows(answer, contract, shard, samples, progress)
        if self.form == "parquet":
            _write_parquet(output, iter([_arrow_table(rows)]))
        else:
            write_csv(output, [COLUMNS, *rows])
        return len(rows), skipped

    def made(self, shard: Path) -> ShardRecord:
        """The content of OUT/STEM.json.

        Raises:
            ArtefactError, RequestError: it is missing, or nothing that was written here.
        """
        return _decoded(ShardRecord, self.out / f"{shard.stem}.json")


def merge(out: Path) -> tuple[Path, int]:
    """Writes OUT/result.csv (or .parquet), all labels in the order of the shards' names; returns it and their number.

    Raises:
        ArtefactError, DataError, RequestError: no labels are there, or they are of several models.
        TrtClsError: labels are missing, changed or there twice; nothing is written.
    """
    there = names_in(out)
    lists = [name for name in there if name.startswith(LIST) and name.endswith(".json")]
    shards = sorted({shard for name in lists for shard in _decoded(ShardList, out / name).shards})
    if not shards:
        raise RequestError(f"{out}: no list of shards found, expected a folder of labels; infer -o OUT writes one")
    made = {
        shard: _decoded(ShardRecord, out / name) for shard in shards if (name := f"{Path(shard).stem}.json") in there
    }
    forms = {(found.model_sha256, json.dumps(found.options)) for found in made.values()}
    if len(forms) > 1:
        raise RequestError(
            f"{out}: labels of {len(forms)} models or options; expected one; label into a folder of each"
        )
    form = str(next(iter(made.values())).options.get("format")) if made else "csv"
    if form not in ("csv", "parquet"):
        instead = "use evaluate --merge" if form == "safetensors" else REMEDY
        raise RequestError(f"{out}: format {form!r} found, expected csv or parquet; {instead}")
    faults = [fault for shard in shards if (fault := _fault(out, shard, made.get(shard), form, there))]
    if faults:
        raise TrtClsError(
            f"{out}: {len(faults)} of {len(shards)} shards are not labeled once: {listed(faults, 20)}; label those "
            "that are missing, after removing what is damaged"
        )
    result = out / f"{RESULT}.{form}"
    tables = [out / f"{Path(shard).stem}.{form}" for shard in shards]
    with written(result) as here:
        if form == "parquet":
            _write_parquet(here, map(_read_table, tables))
        else:
            _join(here, tables)
    return result, sum(found.samples for found in made.values())


def _join(path: Path, tables: Sequence[Path]) -> None:
    """Writes the rows of CSV files, below one header."""
    with atomic(path) as beside, beside.open("wb") as file:
        file.write(csv_row(COLUMNS).encode())
        for table in tables:
            with held(table) as copy, copy.open("rb") as rows:
                rows.readline()
                shutil.copyfileobj(rows, file)


def _read_table(path: Path) -> Any:
    with held(path) as copy:
        return _parquet().read_table(copy)


def _fault(out: Path, shard: str, made: ShardRecord | None, form: str, there: frozenset[str]) -> str:
    """Why the labels of a shard are not each there once; or nothing."""
    output = out / f"{Path(shard).stem}.{form}"
    if made is None or output.name not in there:
        return f"{shard} missing"
    try:
        with held(output) as copy:
            if file_sha256(copy) != made.output_sha256:
                return f"{shard} changed since it was labeled ({output}: remove it)"
            rows = _named(copy)
    except Exception as error:  # csv, int and pyarrow have errors of their own
        return f"{shard} can't be read ({output}: {one_line(error)[:200]})"
    places = [place for place, _ in groupby((name, place) for name, place, _ in rows)]
    twice = len(rows) - len(set(rows))
    each = len(places) == made.samples and places == [(shard, place) for place in range(len(places))]
    if twice or len(rows) != made.rows or not each:
        counted = f"{twice} twice, {len(rows)} of {made.rows} rows"
        return f"{shard} with {len(set(places))} of {made.samples} samples, {counted}"
    return ""


def _rows(
    answer: Answer, contract: Contract, shard: Path, samples: Samples, progress: Callable[[int], None]
) -> tuple[list[Row], int]:
    """The rows of each sample, by its place in the shard, and how many samples were skipped.

    A sample has a row for each class that is named, the likeliest first, and one without a label where none is.
    """
    place_of = places_in(shard, samples)
    names = [os.fsdecode(name) for name in samples.names()]
    found: dict[int, list[tuple[str, str, str]]] = {}
    skipped = 0
    with closing(answer(samples)) as batches:
        for batch in batches:
            for sample, row in zip(batch.samples, batch.probabilities, strict=True):
                named = [(name, f"{share:.6f}", "") for name, share in decision(row, contract).named]
                found[place_of[sample.path]] = named or [("", "", "")]
            for image in batch.skipped:
                found[place_of[image.path]] = [("", "", image.reason)]
            skipped += len(batch.skipped)
            progress(len(batch.samples) + len(batch.skipped))
    keys = (str(sample.path)[len(str(shard)) + 1 :] for sample in samples)
    rows = [
        (shard.name, place, _key(key), names[place], *said) for place, key in enumerate(keys) for said in found[place]
    ]
    return rows, skipped


def places_in(shard: Path, samples: Samples) -> dict[Path, int]:
    """The place of each image in its shard.

    Raises:
        DataError: two images have one name.
    """
    places = {sample.path: place for place, sample in enumerate(samples)}
    if len(places) < len(samples):
        raise DataError(f"{shard}: {len(samples) - len(places)} images have the name of another; write the shard anew")
    return places


def _key(member: str) -> str:
    """The name of a member up to the first dot behind its folders, as WebDataset has it."""
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _decoded(kind: type[T], path: Path) -> T:
    try:
        with held(path) as file:
            return decoded(kind, read_bytes(file), Origin(str(path), " what -o wrote", REMEDY), formats=None)
    except OSError as error:
        raise RequestError(
            f"{path}: can't be read ({error.strerror}), expected a folder of labels; infer -i SHARDS -o OUT writes one"
        ) from error


def _named(path: Path) -> list[tuple[str, int, str]]:
    """The shard, index and label of each row."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8", errors=FOREIGN) as file:
            return [(row["shard"], int(row["index"]), row["label"]) for row in csv.DictReader(file)]
    columns = _parquet().read_table(path, columns=["shard", "index", "label"]).to_pydict()
    return list(zip(columns["shard"], columns["index"], columns["label"], strict=True))


def _arrow_table(rows: Sequence[Row]) -> Any:
    """Text that is no UTF-8 has escapes; an image that was skipped has no label and confidence."""
    shards, places, keys, paths, labels, shares, errors = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    texts = [[text.encode("utf-8", "backslashreplace").decode() for text in column] for column in (shards, keys, paths)]
    skipped = [label or None for label in labels], [float(share) if share else None for share in shares]
    columns = [texts[0], list(places), *texts[1:], *skipped, list(errors)]
    return _arrow().table(columns, schema=_arrow().schema(_schema()))


def _schema() -> Any:
    arrow = _arrow()
    kinds = {"index": arrow.int64(), "confidence": arrow.float64()}
    return [(name, kinds.get(name, arrow.string())) for name in COLUMNS]


def _write_parquet(path: Path, tables: Iterator[Any]) -> None:
    """A row group for each table."""
    with atomic(path) as beside, _parquet().ParquetWriter(beside, _arrow().schema(_schema())) as writer:
        for table in tables:
            writer.write_table(table)


def _arrow() -> Any:
    return require("pyarrow", "--format parquet", "parquet")


def _parquet() -> Any:
    return require("pyarrow.parquet", "--format parquet", "parquet", package="pyarrow")
