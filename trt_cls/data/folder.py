"""Folders of images: which files, of which classes.

Knows names and paths only; no file of an image is opened here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trt_cls.errors import DataError, did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""What counts as an image file, in upper or lower case."""
T = TypeVar("T")
LAYOUT = "expected one sub-folder of images per class"


@dataclass(frozen=True)
class Sample:
    """An image file and the index of its class; -1 without one."""

    path: Path
    label: int = -1


@dataclass(frozen=True)
class ImageFolder:
    """A labelled dataset: the images below one sub-folder per class, class after class, sorted by path."""

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]


def image_folder(root: Path, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
    """The images below `root`, one sub-folder a class; hidden files and folders are passed over.

    Without `classes` the folders' names in alphabetical order are the classes. With `classes` their order holds, and
    folder names and classes must be the same, but for classes without a folder, or with an empty one, where
    `allow_missing` says so.

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
    samples = []
    empty = []
    for label, name in enumerate(classes):
        files = list(_images_below(root / name)) if name in present else []
        samples += [Sample(path, label) for path in files]
        if name in present and not files:
            empty.append(name)
    if not samples:
        raise DataError(f"{root}: no images in its class folders; {LAYOUT}, files ending in {' '.join(EXTENSIONS)}")
    if empty and not allow_missing:
        raise DataError(f"{root}: no images for {_names(empty)}; add images, or remove the folder and its class")
    return ImageFolder(root, tuple(samples), tuple(classes))


def evenly_spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, at equal distances: of images sorted by class folder, all classes in proportion."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def list_images(path: Path) -> list[Path]:
    """`path` itself where it is a file, else all image files below it, folder by folder, sorted.

    Raises:
        DataError: there is no such file or folder, or no image below it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected an image or a folder of images")
    images = list(_images_below(path))
    if not images:
        raise DataError(f"{path}: no images below this folder; expected files ending in {' '.join(EXTENSIONS)}")
    return images


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {found}; expected a folder with one sub-folder of images per class")
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: no class folders in it; {LAYOUT}")
    return folders


def _check_classes(root: Path, folders: Sequence[str], classes: Sequence[str], allow_missing: bool) -> None:
    unknown = sorted(set(folders) - set(classes))
    missing = [] if allow_missing else sorted(set(classes) - set(folders))
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise DataError(f"{root}: {_names(unknown)} is not among the {len(classes)} classes; rename or remove it{hint}")
    if missing:
        raise DataError(f"{root}: no folder for {_names(missing)}; {LAYOUT}, named as in the class map")


def _images_below(folder: Path) -> Iterator[Path]:
    """Sorted within each folder, files before sub-folders; links to folders are followed."""
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent, name)


def _refuse(error: OSError) -> None:
    """A folder that can't be opened would otherwise count as empty."""
    raise DataError(f"{error.filename}: the folder can't be read ({error.strerror}); make it readable") from error


def _names(values: Sequence[object], limit: int = 5) -> str:
    """The first few, comma-separated, and how many more there are."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")
