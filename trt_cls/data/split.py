"""The datasets of an experiment: its folders, or the two parts that `extensions.validation_split` makes of one.

Nothing is copied. Of each class the images with the smallest hashes of seed and relative path are held out: the parts
depend neither on the place of the folder nor on the order of its files, nor on other classes. An image that is added
moves at most one other, the next one in the order of hashes, so that the share holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import fsdecode
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.folder import ImageFolder, image_folder, list_images
from trt_cls.data.shards import Epochs, shard_folder
from trt_cls.errors import DataError
from trt_cls.files import is_shards
from trt_cls.spec.experiment import Experiment, Extensions, TrainConfig

PartName = Literal["train", "val"]


@dataclass(frozen=True)
class Dataset:
    """A folder of images or shards, or one part of one that is labeled."""

    root: Path
    part: PartName | None = None
    """None: all images."""
    share: float = 0.0
    """Of each class, in the part "val"."""
    seed: int = 0
    order: Epochs = "shards"

    def __str__(self) -> str:
        return f"{self.root} (the {self.part} part)" if self.part else str(self.root)

    def labeled(self, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
        """The images with their classes, as `image_folder` or `shard_folder` lists them.

        Raises:
            ArtefactError, DataError: as these, or a class has too few images for two parts.
        """
        if is_shards(self.root):
            folder = shard_folder(self.root, classes, allow_missing=allow_missing, order=self.order)
        else:
            folder = image_folder(self.root, classes, allow_missing=allow_missing)
        if self.part is None:
            return folder
        kept = self._held_out(folder) == (self.part == "val")
        return replace(folder, samples=folder.samples.at(np.flatnonzero(kept)))

    def images(self) -> list[Path]:
        """The images without their classes; a folder that is not divided needs no class folders.

        Raises:
            DataError: as `list_images` or `labeled`.
        """
        return [sample.path for sample in self.labeled().samples] if self.part else list_images(self.root)

    def _held_out(self, folder: ImageFolder) -> NDArray[np.bool_]:
        """Of each class the nearest number of images to `share`; at least one, and one is left."""
        hashes = np.array([self._hash(name) for name in folder.samples.names()])
        order = np.lexsort((hashes, folder.samples.labels))  # class after class, in each by hash
        found = np.zeros(len(order), np.bool_)
        for name, ranked in zip(folder.classes, np.split(order, np.cumsum(folder.counts)[:-1]), strict=True):
            if len(ranked) < 2:
                raise DataError(
                    f"{self.root}: class {name} has one image; expected two or more, to train on and "
                    "to validate on; add images, or remove the folder"
                )
            count = min(max(round(self.share * len(ranked)), 1), len(ranked) - 1)
            found[ranked[:count]] = True
        return found

    def _hash(self, name: bytes) -> bytes:
        return hashlib.blake2b(b"%d/%b" % (self.seed, name), digest_size=16).digest()


def training_datasets(train: TrainConfig, extensions: Extensions, order: Epochs = "shards") -> tuple[Dataset, Dataset]:
    """The images to train on, and those to validate on after each epoch."""
    root, share, seed = Path(train.train_dataset_path), extensions.validation_split, train.random_seed
    if not share:
        return Dataset(root, order=order), Dataset(Path(train.val_dataset_path), order=order)
    return Dataset(root, "train", share, seed, order), Dataset(root, "val", share, seed, order)


def evaluation_dataset(experiment: Experiment) -> Dataset | None:
    """The images of eval_config, else those to validate on; None where the spec names neither."""
    train, evaluation = experiment.train_config, experiment.eval_config
    if evaluation and evaluation.eval_dataset_path:
        return Dataset(Path(evaluation.eval_dataset_path))
    return training_datasets(train, experiment.extensions)[1] if train else None


def split_rows(train: ImageFolder, val: ImageFolder) -> list[tuple[object, ...]]:
    """The rows of split.csv: each image of both parts, by its path in their folder, with its class and part."""
    rows = [
        (Path(fsdecode(name)), folder.classes[label], part)
        for part, folder in (("train", train), ("val", val))
        for name, label in zip(folder.samples.names(), folder.samples.labels, strict=True)
    ]
    return [("path", "label", "part"), *sorted(rows)]
