"""The datasets of an experiment: its folders, or the two parts that `extensions.validation_split` makes of one.

Nothing is copied. Of each class the images with the smallest hashes of seed and relative path are held out: the parts
depend neither on the place of the folder nor on the order of its files, nor on other classes. Adding an
image moves at most one other from one part to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import fsdecode
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Task
from trt_cls.data.folder import LABELS, ImageFolder, Sample, image_folder, list_images
from trt_cls.data.labels_csv import SEPARATOR, labeled_folder
from trt_cls.data.shards import Epochs, shard_folder
from trt_cls.errors import DataError
from trt_cls.files import is_shards
from trt_cls.spec.experiment import Experiment, Extensions, TrainConfig
from trt_cls.urls import location

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
    labels: str = ""
    """Name of the file with the labels of multi-label data; empty: there are class folders."""
    order: Epochs = "shards"

    def with_labels_of(self, task: Task) -> Dataset:
        """The same images, with class folders for the task "single", and LABELS for "multi" unless it has a name."""
        return replace(self, labels="" if task == "single" else self.labels or LABELS)

    def __str__(self) -> str:
        return f"{self.root} (the {self.part} part)" if self.part else str(self.root)

    def labeled(self, classes: Sequence[str] | None = None, *, allow_missing: bool = False) -> ImageFolder:
        """The images with their classes, as `image_folder`, `shard_folder` or `labeled_folder` lists them.

        Raises:
            ArtefactError, DataError: as these, or a class has too few images for two parts.
        """
        if self.labels and is_shards(self.root):
            raise DataError(
                f"{self.root}: shards found with several labels per image (extensions.labels, or a multi-label model), "
                f"expected a folder with {self.labels}; an image in a shard has one class; name the folder"
            )
        if self.labels:
            folder = labeled_folder(self.root, self.labels, classes, allow_missing=allow_missing)
        elif is_shards(self.root):
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
        """The nearest number of images to `share` of each class; at least one, and one is left.

        Of multi-label images the rarest class is divided first, and of each class the images that no rarer one has.
        """
        hashes = np.array([self._hash(name) for name in folder.samples.names()])
        places, classes = folder.samples.members()
        order = np.lexsort((hashes[places], classes))  # class after class, in each by hash
        labels, starts = np.unique(classes[order], return_index=True)
        members = dict(zip(labels.tolist(), np.split(places[order], starts[1:]), strict=True))
        found, divided = np.zeros((2, len(folder.samples)), np.bool_)
        for label in sorted(members, key=lambda label: (label < 0, len(members[label]), label)):
            ranked = members[label]
            if len(ranked) < 2 and label >= 0:
                raise DataError(
                    f"{self.root}: class {folder.classes[label]} has one image; expected two or more, to train on and "
                    "to validate on; add images, or remove the class"
                )
            left = ranked[~divided[ranked]]
            count = min(max(round(self.share * len(ranked)), 1), len(ranked) - 1) - int(found[ranked].sum())
            found[left[: max(count, 0)]] = True
            divided[left] = True
        return found

    def _hash(self, name: bytes) -> bytes:
        return hashlib.blake2b(b"%d/%b" % (self.seed, name), digest_size=16).digest()


def training_datasets(train: TrainConfig, extensions: Extensions, order: Epochs = "shards") -> tuple[Dataset, Dataset]:
    """The images to train on, and those to validate on after each epoch."""
    share = extensions.validation_split
    images = Dataset(location(train.train_dataset_path), labels=extensions.labels, order=order)
    if not share:
        return images, replace(images, root=location(train.val_dataset_path))
    images = replace(images, share=share, seed=train.random_seed)
    return replace(images, part="train"), replace(images, part="val")


def evaluation_dataset(experiment: Experiment) -> Dataset | None:
    """The images of eval_config, else those to validate on; None where the spec names neither."""
    train, evaluation = experiment.train_config, experiment.eval_config
    if evaluation and evaluation.eval_dataset_path:
        return Dataset(location(evaluation.eval_dataset_path), labels=experiment.extensions.labels)
    return training_datasets(train, experiment.extensions)[1] if train else None


def split_rows(train: ImageFolder, val: ImageFolder) -> list[tuple[object, ...]]:
    """The rows of split.csv: each image of both parts, by its path in their folder, with its class and part."""
    rows = [
        (Path(fsdecode(name)), SEPARATOR.join(folder.classes[index] for index in indices), part)
        for part, folder in (("train", train), ("val", val))
        for name, indices in zip(folder.samples.names(), folder.samples.indices(), strict=True)
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
