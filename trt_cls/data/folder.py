"""Image folders: which files, of which classes.

Does not know: the content of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from trt_cls.data.samples import ImageFolder, Sample, Samples, Skipped, files
from trt_cls.data.walk import Walk, is_ignored
from trt_cls.errors import DataError, did_you_mean
from trt_cls.files import is_shards
from trt_cls.preprocessing.image_file import EXTENSIONS
from trt_cls.text import has_foreign_bytes, listed
from trt_cls.urls import StorePath

__all__ = ["ImageFolder", "Sample", "Skipped", "evenly_spread", "image_folder", "list_images", "listed_images"]

T = TypeVar("T")
LABELS = "labels.csv"
"""The usual name of the file with the labels of multi-label data."""
LAYOUT = "expected one sub-folder of images per class"
ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz")


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
            inner = root / classes[0]
            nested = any(entry.is_dir() and not is_ignored(entry.name) for entry in inner.iterdir())
            deeper = f"; are they in it? name {inner}" if nested else ""
            raise DataError(f"{root}: only one class folder ({classes[0]}); a classifier needs at least two{deeper}")
    _check_classes(root, folders, classes, allow_missing)
    present = frozenset(folders)
    walk = Walk(root, [root / name for name in folders])

    def groups() -> Iterator[tuple[int, list[str]]]:
        for label, name in enumerate(classes):
            for names in walk.images(root / name) if name in present else ():
                yield label, [f"{name}/{image}" for image in names]

    found = ImageFolder(root, files(root, groups()), tuple(classes))
    if not found.samples:
        expected = f"{LAYOUT}, files ending in {' '.join(EXTENSIONS)}{walk.not_read_below(root)}"
        raise DataError(f"{root}: no images in its class folders; {expected}")
    empty = [name for name, count in zip(classes, found.counts, strict=True) if name in present and not count]
    if empty and not allow_missing:
        names = f"{listed(empty)}{walk.not_read_below(root / empty[0])}"
        raise DataError(f"{root}: no images for {names}; add images, or remove the folder and its class")
    walk.warn()
    return found


def evenly_spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, at equal distances: of images sorted by class folder, all classes in proportion."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def list_images(path: Path) -> list[Path]:
    """`path` itself if it is a file, else all image files below it, folder by folder, sorted.

    Raises:
        DataError: there is no such file or folder, or no image below it.
    """
    return [path] if path.is_file() else [sample.path for sample in listed_images(path)]


def listed_images(path: Path) -> Samples:
    """The image files of `list_images`, or the images of the shards that `path` names; labels have no meaning.

    Raises:
        ArtefactError, DataError: as `list_images` and `shard_samples`.
    """
    if is_shards(path):
        from trt_cls.data.shards import shard_samples  # what reads tars is a tenth of what `infer` imports

        return shard_samples(path)[0]
    _refuse_store(path)
    if path.is_file():
        return files(Path(), [(-1, [str(path)])])
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected an image or a folder of images")
    walk = Walk(path, [path])
    images = files(path, ((-1, names) for names in walk.images(path)))
    if not images:
        found = f"{' '.join(EXTENSIONS)}{walk.not_read_below(path)}"
        raise DataError(f"{path}: no images below this folder; expected files ending in {found}")
    walk.warn()
    return images


def _refuse_store(path: Path) -> None:
    if isinstance(path, StorePath):
        raise DataError(
            f"{path}: no shards found, expected them in a store, as in {path.scheme}://BUCKET/x-{{0..9}}.tar"
        )


def _class_folders(root: Path) -> list[str]:
    _refuse_store(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        packed = "; unpack it" if root.suffix in ARCHIVES and root.exists() else ""
        raise DataError(f"{root}: {found}; expected a folder with one sub-folder of images per class{packed}")
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
        raise DataError(f"{root}: no folder for {listed(missing)}; {LAYOUT}, named as the {len(classes)} classes")
