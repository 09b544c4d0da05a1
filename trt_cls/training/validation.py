"""Loss and answers on the validation images, of one class each or with labels; a record of images without an answer.

A class of which no image can be decoded is an error. The thresholds of a multi-label model are chosen on a seeded half
of the images; a temperature, if export fits one, uses the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trt_cls.data.folder import ImageFolder
from trt_cls.data.split import halves
from trt_cls.data.stream import Batch, Skipped
from trt_cls.distributed.processes import Processes
from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import (
    Counts,
    Labels,
    Probabilities,
    balanced_accuracy,
    class_counts,
    macro_f1,
    one_answer,
    recalls,
)
from trt_cls.evaluation.multi_label import (
    chosen_thresholds,
    given_labels,
    label_counts,
    label_macro_f1,
    mean_average_precision,
    same_labels,
    truth_of,
)
from trt_cls.training.compute import Compute


class Validation(NamedTuple):
    """The result of a validation."""

    loss: float
    """Cross-entropy without smoothing or penalty."""
    counts: Counts

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy."""
        right, _, images = self.counts.sum(axis=1)
        return float(right / images)

    def figures(self, classes: Sequence[str]) -> dict[str, Any]:
        """Its columns of an `EpochRow`."""
        return {
            "val_loss": self.loss,
            "val_acc": self.accuracy,
            "val_balanced_accuracy": balanced_accuracy(self.counts),
            "val_macro_f1": macro_f1(self.counts),
            "recalls": tuple(recalls(self.counts).tolist()),
            "one_answer": one_answer(self.counts, classes),
        }


def validate(
    model: nn.Module, batches: Iterable[Batch], compute: Compute, broken: BrokenImages, processes: Processes
) -> Validation:
    """The answers to all images that can be decoded, and their loss.

    `batches` are this process's share; the result is that of all processes. Adds the other images to `broken`.

    Raises:
        DataError: no image of some class can be decoded.
    """
    loss = torch.zeros((), dtype=torch.float64, device=compute.last)
    answers, truth = [torch.empty(0, dtype=torch.int64, device=compute.last)], []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            broken.add(batch.skipped)
            if not len(batch.images):
                continue
            images = compute.images(torch.from_numpy(batch.images))
            labels = [sample.label for sample in batch.samples]
            with compute.autocast():
                logits = model(images)
            target = torch.tensor(labels, device=compute.last)
            loss += functional.cross_entropy(logits.float(), target, reduction="sum").double()
            answers.append(logits.argmax(dim=1))
            truth += labels
    broken.share(processes)
    counts = class_counts(torch.cat(answers).cpu().numpy(), np.array(truth, np.int64), broken.classes)
    losses, counted = zip(*processes.gather((loss.item(), counts)), strict=True)
    total = sum(counted)
    return Validation(sum(losses) / int(total[2].sum()), total)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context with `model` in evaluation mode, in training mode afterwards."""
    model.eval()
    try:
        yield
    finally:
        model.train()


class BrokenImages:
    """The broken images of one folder, each once, in the order of their first failure."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self._left = folder.counts
        self._broken: dict[Path, Skipped] = {}

    @property
    def classes(self) -> int:
        """Number of the folder's classes."""
        return len(self._folder.classes)

    @property
    def images(self) -> tuple[Skipped, ...]:
        """Each broken image once, after those that the folder's listing skipped."""
        return (*self._folder.skipped, *self._broken.values())

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Adds broken images; those that are known have no effect.

        Raises:
            DataError: no image of some class is left.
        """
        for image in skipped:
            if image.path in self._broken:
                continue
            self._broken[image.path] = image
            for label in image.indices:
                self._left[label] -= 1
                if self._left[label] == 0:
                    raise DataError(
                        f"{self._folder.root}: class {self._folder.classes[label]!r} has no image that can be read "
                        f"(the last: {image.path}: {image.reason}); expected at least one; replace the files"
                    )

    def share(self, processes: Processes) -> None:
        """Adds those of the other processes; all of them must call it.

        Raises:
            DataError: as `add`.
        """
        for images in processes.gather(tuple(self._broken.values())):
            self.add(images)

    def state(self) -> dict[str, str]:
        """Paths in the folder, and reasons."""
        return {str(path.relative_to(self._folder.root)): image.reason for path, image in self._broken.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Restores what `state` returned, wherever the folder is now.

        Raises:
            LookupError: an image of it is not in the folder.
        """
        wanted, samples = {os.fsencode(name) for name in state}, self._folder.samples
        keys = samples.keys() if wanted else ()
        found = {os.fsdecode(key): samples[place] for place, key in enumerate(keys) if key in wanted}
        self.add(
            Skipped(found[name].path, reason, found[name].label, found[name].labels) for name, reason in state.items()
        )


class LabelValidation(NamedTuple):
    """The result of a validation."""

    loss: float
    """Binary cross-entropy, the mean over images and labels, without smoothing or penalty."""
    map: float
    exact_match: float
    counts: Counts
    thresholds: tuple[float, ...]
    one_answer: str

    def figures(self, classes: Sequence[str]) -> dict[str, Any]:
        """Its columns of an `EpochRow`."""
        return {
            "val_loss": self.loss,
            "val_acc": self.exact_match,
            "val_macro_f1": label_macro_f1(self.counts),
            "val_map": self.map,
            "recalls": tuple(recalls(self.counts).tolist()),
            "thresholds": self.thresholds,
            "one_answer": self.one_answer,
        }


def validate_labels(
    model: nn.Module,
    batches: Iterable[Batch],
    compute: Compute,
    broken: BrokenImages,
    processes: Processes,
    folder: ImageFolder,
    precision: float,
) -> LabelValidation:
    """The answers to all images of `folder` that can be decoded, see `validation.validate`.

    `precision` is that of extensions.threshold_precision.

    Raises:
        DataError: no image of some class can be decoded.
    """
    classes = len(folder.classes)
    place = {sample.path: number for number, sample in enumerate(folder.samples)}
    rows, losses, answers = [np.empty(0, np.int64)], [np.empty(0)], [np.empty((0, classes), np.float32)]
    with evaluating(model), torch.no_grad():
        for batch in batches:
            broken.add(batch.skipped)
            if not len(batch.images):
                continue
            with compute.autocast():
                logits = model(compute.images(torch.from_numpy(batch.images)))
            target = torch.from_numpy(truth_of(batch.samples, classes)).to(logits.device, torch.float32)
            loss = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
            rows.append(np.array([place[sample.path] for sample in batch.samples]))
            losses.append(loss.double().mean(dim=1).cpu().numpy())
            answers.append(torch.sigmoid(logits.float()).cpu().numpy())
    broken.share(processes)
    parts = processes.gather(tuple(np.concatenate(part) for part in (rows, losses, answers)))
    numbers, lost, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(numbers)  # that of the folder, however many processes there are
    if not len(order):
        raise DataError(f"{folder.root}: none of its images can be decoded; expected image files; replace them")
    return _measured(folder, numbers[order], float(lost[order].mean()), probabilities[order], precision)


def _measured(
    folder: ImageFolder, numbers: Labels, loss: float, probabilities: Probabilities, precision: float
) -> LabelValidation:
    """The validation of the images of `folder` with these numbers, rising."""
    truth = truth_of([folder.samples[number] for number in numbers], len(folder.classes))
    second = {sample.path for sample in halves(folder.samples)[1]}
    chosen_on = np.array([folder.samples[number].path in second for number in numbers])
    thresholds = chosen_thresholds(probabilities[chosen_on], truth[chosen_on], precision)
    given = given_labels(probabilities, thresholds)
    return LabelValidation(
        loss=loss,
        map=mean_average_precision(probabilities, truth),
        exact_match=float((given == truth).all(axis=1).mean()),
        counts=label_counts(given, truth),
        thresholds=thresholds,
        one_answer=same_labels(given, truth, folder.classes),
    )
