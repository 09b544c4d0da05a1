"""What is in a folder of images: its parts, classes, sizes, colors, and what can't be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from trt_cls.data.folder import ImageFolder, Sample, evenly_spread, image_folder
from trt_cls.data.stream import Skipped, skipped
from trt_cls.data.walk import is_ignored
from trt_cls.errors import DataError
from trt_cls.preprocessing.image_file import EXTENSIONS, opened_image
from trt_cls.preprocessing.images import loaded
from trt_cls.spec.starter import Pictures
from trt_cls.text import listed, printable

MOST = 512
"""Images that are decoded, from all over the folder."""
VAL, TEST = ("val", "validation", "valid"), ("test",)
"""Names of the folders beside `train`."""
IMBALANCED = 10


class _Seen(NamedTuple):
    size: tuple[int, int]
    gray: bool


def survey(folder: Path) -> Pictures:
    """Looks at a folder of class folders, or one with such folders `train`, `val` and `test`.

    Raises:
        DataError: nothing can be learned from it, with the reason.
    """
    train, val, test = _parts(folder)
    listing = image_folder(train)
    if val:
        image_folder(val, listing.classes)
    if test:
        image_folder(test, listing.classes, allow_missing=True)
    looked_at = evenly_spread(listing.samples, MOST)
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(_look, looked_at))
    seen = [outcome for outcome in outcomes if isinstance(outcome, _Seen)]
    broken = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
    counts = Counter(listing.samples.labels.tolist())
    counts.subtract(image.label for image in broken)
    _refuse_few(listing, counts, len(broken))
    width, height = (sorted(sizes)[len(seen) // 2] for sizes in zip(*(image.size for image in seen), strict=True))
    color = not all(image.gray for image in seen)
    found = f"{len(looked_at)} looked at: {width}×{height} pixels in the middle, {'color' if color else 'gray'}"
    remarks = _remarks(listing, counts, broken, f"{found}, {len(broken)} can't be read.")
    return Pictures(
        train=str(train),
        val=str(val or ""),
        test=str(test or ""),
        classes=len(listing.classes),
        images=len(listing.samples),
        width=width,
        height=height,
        color=color,
        remarks=remarks,
    )


def _parts(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """The folders to train, validate and test on: `folder` itself, or those in it that bear these names.

    A folder `train` with images of its own is a class, beside a bus.
    """
    train = folder / "train"
    if not train.is_dir():
        return folder, None, None
    entries = [entry for entry in train.iterdir() if not is_ignored(entry.name)]
    if any(entry.suffix.lower() in EXTENSIONS for entry in entries) or not any(entry.is_dir() for entry in entries):
        return folder, None, None
    val, test = (next((folder / name for name in names if (folder / name).is_dir()), None) for names in (VAL, TEST))
    return train, val, test


def _look(sample: Sample) -> _Seen | Skipped:
    try:
        with opened_image(sample.source) as (image, _):
            loaded(image)
            return _Seen(image.size, image.mode.startswith(("1", "L", "I")))
    except DataError as error:
        return skipped(sample, error)


def _refuse_few(listing: ImageFolder, counts: Counter[int], broken: int) -> None:
    few = [name for label, name in enumerate(listing.classes) if counts[label] < 2]
    if few:
        unread = f", {broken} images can't be read" if broken else ""
        raise DataError(
            f"{listing.root}: {len(few)} of {len(listing.classes)} classes have fewer than two images "
            f"({listed(few, 3)}){unread}; a class can't be learned from one picture, and none is left to check it on; "
            "expected two or more, better 50; add images, or remove these class folders"
        )


def _remarks(listing: ImageFolder, counts: Counter[int], broken: Sequence[Skipped], found: str) -> tuple[str, ...]:
    fewest, most = min(counts.values()), max(counts.values())
    of_each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    lines = [
        f"{listing.root}: {len(listing.samples)} images of {len(listing.classes)} classes, {of_each} of each.",
        found,
        *(f"Can't be read, skipped by train: {image.path}: {image.reason}" for image in broken[:3]),
    ]
    if most >= IMBALANCED * fewest:
        few = [name for label, name in enumerate(listing.classes) if counts[label] == fewest]
        lines.append(f"Unequal classes, {listed(few, 3)} the smallest: look at each class in the report, not at top-1.")
    return tuple(printable(line) for line in lines)
