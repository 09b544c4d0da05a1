"""The labeled images that probabilities are calibrated on, in two halves, and what is measured on the second.

A temperature is fitted on the first half (`temperature`). The rules for sets and for unknown images are measured on the
second, with the exported file itself, so that they hold for its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from trt_cls.contract import Conformal, Contract, Reject, Task
from trt_cls.data.folder import Sample, evenly_spread
from trt_cls.data.split import Dataset, evaluation_dataset, halves, training_datasets
from trt_cls.engines.backends import open_engine
from trt_cls.errors import RequestError
from trt_cls.evaluation.decisions import UNKNOWN, calibration_rows, conformal_of, reject_of
from trt_cls.evaluation.evaluate import Predictions, predict
from trt_cls.export.images import BATCH, WORKERS
from trt_cls.spec.experiment import Experiment

MOST = 5000
"""Images of both halves: of 2,500 a temperature has a standard error of about 2 %, a coverage of 95 % one of 0.4 %."""


class Halves(NamedTuple):
    """The images, shuffled with a seed."""

    source: Dataset
    first: list[Sample]
    second: list[Sample]


def validation_halves(
    images: Path | None, experiment: Experiment | None, classes: tuple[str, ...], task: Task = "single"
) -> Halves:
    """Of the labeled folder `images`, else of what the spec validates on, else of what it evaluates on.

    Raises:
        RequestError: there are none.
        DataError: they are missing or not labeled.
    """
    train = experiment.train_config if experiment else None
    source = Dataset(images) if images else None
    if source is None and experiment and train:
        source = training_datasets(train, experiment.extensions)[1]
    source = source or (evaluation_dataset(experiment) if experiment else None)
    if source is None:
        raise RequestError(
            "--calibrate, --coverage and --reject-rate measure on labeled images, and none are named; expected "
            "--images DIR with a sub-folder per class, or -e SPEC whose validation dataset is taken; add one of them"
        )
    samples = source.with_labels_of(task).labeled(classes, allow_missing=True).samples
    if task == "multi":  # the second half of all chose the thresholds of the training
        first, second = (half[: MOST // 2] for half in halves(samples))
    else:
        first, second = halves(evenly_spread(samples, MOST))
    return Halves(source, first, second or first)


def answered(model: Path, samples: list[Sample]) -> Predictions:
    """The answers of `model` on the CPU.

    Raises:
        DataError: no image can be decoded.
        MissingDependency: the backend is not installed.
    """
    with closing(open_engine(model, "cpu")) as engine:
        return predict(engine, samples, batch_size=BATCH, workers=WORKERS)


@dataclass(frozen=True)
class Rules:
    """The rules that a file is to have; None: without."""

    coverage: float | None = None
    """Share of images whose set holds the true class."""
    reject_rate: float | None = None
    """Share of images that are unknown, at most."""

    def __bool__(self) -> bool:
        return self.coverage is not None or self.reject_rate is not None

    def require_possible(self, contract: Contract) -> None:
        """Raises a RequestError for a multi-label model, and where a class has the name that unknown images get."""
        if self and contract.task == "multi":
            raise RequestError(
                "--coverage and --reject-rate: the model gives any number of labels, each by a threshold of its own; "
                "expected one of one class an image; leave them out"
            )
        if self and UNKNOWN in contract.classes:
            raise RequestError(
                f'--coverage and --reject-rate: a class is named "{UNKNOWN}", as images are that the model does not '
                "know; expected another name; rename its folder and train again"
            )

    def promised(self, contract: Contract) -> Contract:
        """`contract` with rules that are not measured yet in the place of its own."""
        return replace(
            contract,
            conformal=contract.conformal if self.coverage is None else Conformal(self.coverage, 0),
            reject=contract.reject if self.reject_rate is None else Reject(self.reject_rate, 0),
        )

    def measured(self, model: Path, contract: Contract, images: Halves, say: Callable[[str], None]) -> Contract:
        """`contract` with the rules that hold for the answers of `model` on the second half.

        Raises:
            DataError: too few images can be decoded.
            MissingDependency: the backend is not installed.
        """
        found = answered(model, images.second)
        if self.coverage is not None:
            rule = conformal_of(found.probabilities, found.labels, self.coverage)
            contract = replace(contract, conformal=rule)
        if self.reject_rate is not None:
            contract = replace(contract, reject=reject_of(found.probabilities, self.reject_rate))
        left_out = f", {len(found.skipped)} can't be decoded" if found.skipped else ""
        for name, value in calibration_rows(replace(contract, temperature=None)):
            say(f"{name.lower()} {value}, by {len(found.samples)} images of {images.source}{left_out}")
        return contract
