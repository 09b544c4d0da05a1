"""Image folders: which files, of which classes.

Does not know: the content of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trt_cls.data.walk import Walk, is_ignored
from trt_cls.errors import DataError, did_you_mean
from trt_cls.preprocessing.gate import EXTENSIONS
from trt_cls.text import has_foreign_bytes, listed

T = TypeVar("T")
LABELS = "labels.csv"
"""The usual name of the file with the labels of multi-label data."""
LAYOUT = "expected one sub-folder of images per class"


@dataclass(frozen=True)
class Sample:
    """An image file and the index of its class; -1: unlabeled, or with `labels`."""

    path: Path
    label: int = -1
    labels: tuple[int, ...] | None = None
    """In multi-label data, the indices of its classes, rising; None: it has one class, or is unlabeled."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The classes of a labeled image."""
        return (self.label,) if self.labels is None else self.labels

    @property
    def is_labeled(self) -> bool:
        """Whether its classes are known, none of them included."""
        return self.label >= 0 or self.labels is not None


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """A labeled dataset: the images below one sub-folder per class, class after class, sorted by path.

    In multi-label data, see `labels`, the images are sorted by path alone.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    """Images without a row in the file of labels, and rows without an image."""


def image_folder(root: Path, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
    """The images below `root`, one sub-folder per class; hidden and system files and folders are ignored.

    Without `classes` the folders' names in alphabetical order are the classes. With `classes` their order is kept, and
    folder names and classes must be the same; `allow_missing` permits classes with no folder or an empty one.

    Raises:
        DataError: `root` is no such folder, its classes are fewer than two or not the given ones, or one has no image.
    """
    folders = _class_folders(root)
    if classes is None:
        classes = folders
        if len(classes) == 1:
            raise DataError(f"{root}: only one class folder ({classes[0]}); a classifier needs at least two")
    _check_classes(root, folders, classes, allow_missing)
    present = frozenset(folders)
    walk = Walk(root, [root / name for name in folders])
    samples = []
    empty = []
    for label, name in enumerate(classes):
        files = list(walk.images(root / name)) if name in present else []
        samples += [Sample(path, label) for path in files]
        if name in present and not files:
            empty.append(name)
    if not samples:
        found = f"{LAYOUT}, files ending in {' '.join(EXTENSIONS)}{walk.not_read_below(root)}"
        raise DataError(f"{root}: no images in its class folders; {found}")
    if empty and not allow_missing:
        found = f"{listed(empty)}{walk.not_read_below(root / empty[0])}"
        raise DataError(f"{root}: no images for {found}; add images, or remove the folder and its class")
    walk.warn()
    return ImageFolder(root, tuple(samples), tuple(classes))


def evenly_spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, at equal distances: of images sorted by class folder, all classes in proportion."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def list_images(path: Path) -> list[Path]:
    """`path` itself if it is a file, else all image files below it, folder by folder, sorted.

    Raises:
        DataError: there is no such file or folder, or no image below it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected an image or a folder of images")
    walk = Walk(path, [path])
    images = list(walk.images(path))
    if not images:
        found = f"{' '.join(EXTENSIONS)}{walk.not_read_below(path)}"
        raise DataError(f"{path}: no images below this folder; expected files ending in {found}")
    walk.warn()
    return images


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {found}; expected a folder with one sub-folder of images per class")
    try:
        folders = sorted(entry.name for entry in root.iterdir() if not is_ignored(entry.name) and entry.is_dir())
    except OSError as error:
        raise DataError(f"{error.filename}: the folder can't be read ({error.strerror}); make it readable") from error
    if not folders:
        several = f'; for {LABELS} there, set extensions {{ labels: "{LABELS}" }}' if (root / LABELS).is_file() else ""
        raise DataError(f"{root}: no class folders in it; {LAYOUT}{several}")
    for name in folders:
        if has_foreign_bytes(name):
            raise DataError(
                f"{root}: the name of the class folder {name} is not UTF-8; expected one that model files can store; "
                "rename the folder"
            )
    return folders


def _check_classes(root: Path, folders: Sequence[str], classes: Sequence[str], allow_missing: bool) -> None:
    unknown = sorted(set(folders) - set(classes))
    missing = [] if allow_missing else sorted(set(classes) - set(folders))
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise DataError(f"{root}: {listed(unknown)} is not among the {len(classes)} classes; rename or remove it{hint}")
    if missing:
        raise DataError(f"{root}: no folder for {listed(missing)}; {LAYOUT}, named as in the class map")
