"""The datasets of an experiment: its folders, or the two parts that `extensions.validation_split` makes of one.

Nothing is copied. Of each class the images with the smallest hashes of seed and relative path are held out: the parts
depend neither on the place of the folder nor on the order of its files, nor on other classes. An image that is added
moves at most one other, the next one in the order of hashes, so that the share holds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal, get_args

from trt_cls.contract import Task
from trt_cls.data.folder import LABELS, ImageFolder, Sample, image_folder, list_images
from trt_cls.data.labels import labeled_folder
from trt_cls.errors import DataError
from trt_cls.spec.experiment import Experiment, Extensions, TrainConfig

PartName = Literal["train", "val"]


@dataclass(frozen=True)
class Dataset:
    """A folder of images, or one part of a folder with one sub-folder per class."""

    root: Path
    part: PartName | None = None
    """None: all images."""
    share: float = 0.0
    """Of each class, in the part "val"."""
    seed: int = 0
    labels: str = ""
    """Name of the file with the labels of multi-label data; empty: there are class folders."""

    def with_labels_of(self, task: Task) -> Dataset:
        """The same images, with class folders for the task "single", and LABELS for "multi" unless it has a name."""
        return replace(self, labels="" if task == "single" else self.labels or LABELS)

    def __str__(self) -> str:
        return f"{self.root} (the {self.part} part)" if self.part else str(self.root)

    def labeled(self, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
        """The images with their classes, as `image_folder` lists them.

        Raises:
            DataError: as `image_folder` or `labeled_folder`, or a class has too few images for two parts.
        """
        if self.labels:
            folder = labeled_folder(self.root, self.labels, classes, allow_missing=allow_missing)
        else:
            folder = image_folder(self.root, classes, allow_missing=allow_missing)
        if self.part is None:
            return folder
        held_out = self._held_out(folder)
        kept = (sample for sample in folder.samples if (sample.path in held_out) == (self.part == "val"))
        return replace(folder, samples=tuple(kept))

    def images(self) -> list[Path]:
        """The images without their classes; a folder that is not divided needs no class folders.

        Raises:
            DataError: as `list_images` or `labeled`.
        """
        return [sample.path for sample in self.labeled().samples] if self.part else list_images(self.root)

    def _held_out(self, folder: ImageFolder) -> set[Path]:
        """The nearest number of images to `share` of each class; at least one, and one is left.

        Of multi-label images the rarest class is divided first, and of each class the images that no rarer one has.
        """
        found: set[Path] = set()
        divided: set[Path] = set()
        members = _members(folder)
        for label in sorted(members, key=lambda label: (label < 0, len(members[label]), label)):
            paths = members[label]
            if len(paths) < 2 and label >= 0:
                raise DataError(
                    f"{self.root}: class {folder.classes[label]} has one image; expected two or more, to train on and "
                    "to validate on; add images, or remove the class"
                )
            left = sorted((path for path in paths if path not in divided), key=self._hash)
            held = sum(path in found for path in paths)
            count = min(max(round(self.share * len(paths)), 1), len(paths) - 1) - held
            found.update(left[: max(count, 0)])
            divided.update(left)
        return found

    def _hash(self, path: Path) -> bytes:
        name = os.fsencode(path.relative_to(self.root).as_posix())
        return hashlib.blake2b(b"%d/%b" % (self.seed, name), digest_size=16).digest()


def _members(folder: ImageFolder) -> dict[int, list[Path]]:
    """The images of each class; -1: those with none."""
    members: dict[int, list[Path]] = {}
    for sample in folder.samples:
        for label in sample.indices or (-1,):
            members.setdefault(label, []).append(sample.path)
    return members


def training_datasets(train: TrainConfig, extensions: Extensions) -> tuple[Dataset, Dataset]:
    """The images to train on, and those to validate on after each epoch."""
    root, share, labels = Path(train.train_dataset_path), extensions.validation_split, extensions.labels
    if not share:
        return Dataset(root, labels=labels), Dataset(Path(train.val_dataset_path), labels=labels)
    train_part, val_part = (Dataset(root, part, share, train.random_seed, labels) for part in get_args(PartName))
    return train_part, val_part


def evaluation_dataset(experiment: Experiment) -> Dataset | None:
    """The images of eval_config, else those to validate on; None where the spec names neither."""
    train, evaluation = experiment.train_config, experiment.eval_config
    if evaluation and evaluation.eval_dataset_path:
        return Dataset(Path(evaluation.eval_dataset_path), labels=experiment.extensions.labels)
    return training_datasets(train, experiment.extensions)[1] if train else None


def split_rows(train: ImageFolder, val: ImageFolder) -> list[tuple[object, ...]]:
    """The rows of split.csv: each image of both parts, by its path in their folder, with its class and part."""
    rows = [
        (sample.path.relative_to(folder.root), "|".join(folder.classes[index] for index in sample.indices), part)
        for part, folder in (("train", train), ("val", val))
        for sample in folder.samples
    ]
    return [("path", "label", "part"), *sorted(rows)]


HALVES_SEED = 0


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The same two random halves of `samples` each time, in an order drawn too.

    A temperature is fitted on the first half; thresholds are chosen on the second.
    """
    drawn = Random(HALVES_SEED).sample(samples, len(samples))
    half = (len(drawn) + 1) // 2
    return drawn[:half], drawn[half:]
