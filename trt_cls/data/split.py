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
from itertools import groupby
from pathlib import Path
from typing import Literal

from trt_cls.data.folder import ImageFolder, image_folder, list_images
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

    def __str__(self) -> str:
        return f"{self.root} (the {self.part} part)" if self.part else str(self.root)

    def labeled(self, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
        """The images with their classes, as `image_folder` lists them.

        Raises:
            DataError: as `image_folder`, or a class has too few images for two parts.
        """
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
        """The nearest number of images to `share` of each class; at least one, and one is left."""
        found: set[Path] = set()
        for label, samples in groupby(folder.samples, lambda sample: sample.label):
            ranked = sorted((sample.path for sample in samples), key=self._hash)
            if len(ranked) < 2:
                raise DataError(
                    f"{self.root}: class {folder.classes[label]} has one image; expected two or more, to train on and "
                    "to validate on; add images, or remove the folder"
                )
            count = min(max(round(self.share * len(ranked)), 1), len(ranked) - 1)
            found.update(ranked[:count])
        return found

    def _hash(self, path: Path) -> bytes:
        name = os.fsencode(path.relative_to(self.root).as_posix())
        return hashlib.blake2b(b"%d/%b" % (self.seed, name), digest_size=16).digest()


def training_datasets(train: TrainConfig, extensions: Extensions) -> tuple[Dataset, Dataset]:
    """The images to train on, and those to validate on after each epoch."""
    root, share = Path(train.train_dataset_path), extensions.validation_split
    if not share:
        return Dataset(root), Dataset(Path(train.val_dataset_path))
    return Dataset(root, "train", share, train.random_seed), Dataset(root, "val", share, train.random_seed)


def evaluation_dataset(experiment: Experiment) -> Dataset | None:
    """The images of eval_config, else those to validate on; None where the spec names neither."""
    train, evaluation = experiment.train_config, experiment.eval_config
    if evaluation and evaluation.eval_dataset_path:
        return Dataset(Path(evaluation.eval_dataset_path))
    return training_datasets(train, experiment.extensions)[1] if train else None


def split_rows(train: ImageFolder, val: ImageFolder) -> list[tuple[object, ...]]:
    """The rows of split.csv: each image of both parts, by its path in their folder, with its class and part."""
    rows = [
        (sample.path.relative_to(folder.root), folder.classes[sample.label], part)
        for part, folder in (("train", train), ("val", val))
        for sample in folder.samples
    ]
    return [("path", "label", "part"), *sorted(rows)]
