"""Validation of multi-label training: binary cross-entropy, average precision, and the thresholds that are stored.

Thresholds are chosen on a seeded half of the images; a temperature, if export fits one, uses the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trt_cls.data.folder import ImageFolder
from trt_cls.data.split import halves
from trt_cls.data.stream import Batch
from trt_cls.distributed.processes import Processes
from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import Counts, Labels, Probabilities, recalls
from trt_cls.evaluation.multi_label import (
    chosen_thresholds,
    given_labels,
    label_counts,
    macro_f1,
    mean_average_precision,
    same_labels,
    truth_of,
)
from trt_cls.training.compute import Compute
from trt_cls.training.validation import BrokenImages, evaluating


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
        """What an `EpochRow` says of it."""
        return {
            "val_loss": self.loss,
            "val_acc": self.exact_match,
            "val_macro_f1": macro_f1(self.counts),
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
