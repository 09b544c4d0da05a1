"""Multi-label data: a folder of images with a CSV file that lists the labels of each, in place of class folders.

A row by RFC 4180 is `path,label|label`: the path in the folder, and any number of labels. A first row `path,labels` and
a byte-order mark are left out. Does not know: the content of images.
"""

from __future__ import annotations

import csv
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path

from trt_cls.artefacts.decoding import read_bytes
from trt_cls.contract import faults_of_classes
from trt_cls.data.samples import ImageFolder, Skipped, files
from trt_cls.data.walk import Walk
from trt_cls.errors import DataError, did_you_mean
from trt_cls.preprocessing.image_file import EXTENSIONS
from trt_cls.text import FOREIGN, listed, printable

HEADER = ["path", "labels"]
SEPARATOR = "|"
MOST_BYTES = 2**28
"""Two million rows of a hundred bytes."""
ROWS = "expected rows path,label|label"

LabelRows = Mapping[str, tuple[str, ...]]
"""Labels by paths in the folder."""


def labeled_folder(
    root: Path, name: str, classes: Sequence[str] | None = None, *, allow_missing: bool = False
) -> ImageFolder:
    """The images below `root` with the labels that its file `name` lists.

    Without `classes` the labels in alphabetical order are the classes; `allow_missing` permits given classes that no
    image has. An image without a row, and a row without an image, are skipped.

    Raises:
        DataError: the file is missing or can't be read, has a row that is not valid or a label that is not among
            `classes`, or no image is left.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {found}; expected a folder of images with the file {name}")
    table = root / name
    rows = _rows(table)
    labels = sorted({label for row in rows.values() for label in row})
    chosen = tuple(labels if classes is None else classes)
    _check_classes(table, labels, chosen)
    index = {label: number for number, label in enumerate(chosen)}
    walk = Walk(root, [root])
    names = [name for group in walk.images(root) for name in group]
    listed_names = [name for name in names if name in rows]
    if not listed_names:
        raise DataError(
            f"{table}: none of its {len(rows)} paths is an image in {root}; expected paths in this folder, of files "
            f"ending in {' '.join(EXTENSIONS)}{walk.not_read_below(root)}"
        )
    sets = [sorted(index[label] for label in rows[name]) for name in listed_names]
    unlisted = [Skipped(root / place, f"not in {name}") for place in names if place not in rows]
    present = set(names)
    absent = [Skipped(root / place, _absence(root / place, name)) for place in rows if place not in present]
    folder = ImageFolder(root, files(root, [(-1, listed_names)], sets), chosen, (*unlisted, *absent))
    _require_images(table, folder, allow_missing=allow_missing)
    walk.warn()
    return folder


def _rows(table: Path) -> LabelRows:
    found: dict[str, tuple[str, ...]] = {}
    for line, cells in _cells(table):
        where = f"{table}, line {line}"
        if len(cells) != 2:
            raise DataError(f"{where}: cells found: {len(cells)}; {ROWS}; a path with a comma stands in quotes")
        place = _place(cells[0], where)
        if place in found:
            raise DataError(f"{where}: {printable(place)} found twice; expected each path once; remove a row")
        found[place] = _labels(cells[1], where)
    if not found:
        raise DataError(f"{table}: no rows; {ROWS}")
    return found


def _cells(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows but the header and empty lines, each with the number of its last line."""
    try:
        content = read_bytes(table, MOST_BYTES)
    except OSError as error:
        raise DataError(
            f"{table}: can't be read ({error.strerror}); expected the labels of the images in this folder, rows "
            "path,label|label; write it, or set extensions.labels to the file's name"
        ) from error
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in content:
        raise DataError(f"{table}: no text in UTF-8 (UTF-16, or a byte 0); {ROWS} in UTF-8; save it again as that")
    text = content.removeprefix(BOM_UTF8).decode("utf-8", FOREIGN)
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    first = True
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: {error}; {ROWS} by RFC 4180") from error
        if cells and not (first and cells == HEADER):
            yield reader.line_num, cells
        first = first and not cells


def _place(cell: str, where: str) -> str:
    """The path in the folder, in its shortest form."""
    place = os.path.normpath(cell) if cell else ""
    if place in ("", ".") or os.path.isabs(place) or place.split(os.sep)[0] == os.pardir:
        raise DataError(f'{where}: path "{printable(cell)}" found; expected one in this folder, as in "dog/1.jpg"')
    return place


def _labels(cell: str, where: str) -> tuple[str, ...]:
    labels = tuple(cell.split(SEPARATOR)) if cell else ()
    for label in labels:
        if not label or label != label.strip():
            raise DataError(
                f'{where}: label "{printable(label)}" found; expected names with {SEPARATOR} between them, and no '
                'space around it, as in "cat|dog"'
            )
    if len(set(labels)) < len(labels):
        raise DataError(f'{where}: "{printable(cell)}" found; expected each label once')
    return labels


def _check_classes(table: Path, labels: Sequence[str], classes: Sequence[str]) -> None:
    if not classes:
        raise DataError(f"{table}: no image has a label; {ROWS}")
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise DataError(
            f"{table}: {printable(listed(unknown))} is not among the {len(classes)} classes; expected the classes of "
            f"the training; correct the rows{hint}"
        )
    for name in classes:
        if SEPARATOR in name:
            raise DataError(
                f"{table}: the class {printable(name)} has a {SEPARATOR} in its name, which separates labels; "
                "expected a name without; rename it in the class map"
            )
    for _, fault in faults_of_classes(classes):
        raise DataError(printable(f"{table}: {fault}"))


def _require_images(table: Path, folder: ImageFolder, *, allow_missing: bool) -> None:
    missing = [name for name, count in zip(folder.classes, folder.counts, strict=True) if not count]
    if missing and not allow_missing:
        raise DataError(
            f"{table}: no image has the label {printable(listed(missing))}; expected one or more of each class; add "
            "images, or remove the class"
        )


def _absence(image: Path, name: str) -> str:
    if not os.path.lexists(image):
        return f"no such file, though {name} lists it"
    return f"hidden, or not a file ending in {' '.join(EXTENSIONS)}"
