"""The images that an artefact is checked and calibrated on: of a folder or dataset, or random ones if nothing is given.

Probabilities are calibrated on labeled images in two halves. A temperature is fitted on the first (`temperature`); the
rules for sets and for unknown images are measured on the second, with the exported file itself, so that they hold for
its precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Conformal, Contract, Preprocessing, Reject, Task
from trt_cls.data.folder import Sample, evenly_spread
from trt_cls.data.split import Dataset, evaluation_dataset, halves, training_datasets
from trt_cls.data.stream import stream
from trt_cls.engines.backends import open_engine
from trt_cls.errors import RequestError
from trt_cls.evaluation.compare import samples_of
from trt_cls.evaluation.evaluate import Predictions, predict
from trt_cls.evaluation.prediction_sets import UNKNOWN, calibration_rows, conformal_of, reject_of
from trt_cls.preprocessing.pillow import normalize
from trt_cls.spec.experiment import Experiment

MOST_IMAGES = 512
"""Enough that a disagreement of 1 in 100 shows; a resnet50 takes about 30 s for both sides on two cores."""
RANDOM = 64
BATCH = 16
WORKERS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Images that are decoded each time they are gone through."""

    preprocessing: Preprocessing
    folder: Path | None
    """None: random pixels."""
    samples: tuple[Sample, ...]
    total: int
    """Images in the folder, of which `samples` are a part."""
    classes: tuple[str, ...] = ()
    """Of the network; `samples` are labeled if all are in folders named so."""

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Preprocessed images, float32 [n,C,H,W]; what can't be decoded is left out with a warning."""
        if self.folder is None:
            yield from _random_batches(self.preprocessing)
            return
        for batch in stream(self.samples, self.preprocessing, batch_size=BATCH, workers=WORKERS):
            for skipped in batch.skipped:
                log.warning("%s: left out: %s", skipped.path, skipped.reason)
            if len(batch.images):
                yield batch.images

    def describe(self, used: int) -> str:
        """What they are, when `used` of them could be decoded."""
        if self.folder is None:
            return f"{used} random images"
        undecoded = len(self.samples) - used
        return f"{used} of {self.total} images of {self.folder}" + (
            f" ({undecoded} can't be decoded)" if undecoded else ""
        )


def images_for(
    preprocessing: Preprocessing, source: Path | Dataset | None, most: int = MOST_IMAGES, classes: Sequence[str] = ()
) -> ImageSet:
    """Up to `most` images from all over `source`, the same ones each time; without a folder 64 random ones.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    found = samples_of(source, classes) if source else []
    root = source.root if isinstance(source, Dataset) else source
    return ImageSet(preprocessing, root, tuple(evenly_spread(found, most)), len(found), tuple(classes))


def _random_batches(preprocessing: Preprocessing) -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    for _ in range(RANDOM // BATCH):
        pixels = generator.integers(0, 256, (BATCH, *shape), dtype=np.uint8)
        yield np.stack([normalize(image, preprocessing) for image in pixels])


MOST_LABELED = 5000
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
        first, second = (half[: MOST_LABELED // 2] for half in halves(samples))
    else:
        first, second = halves(evenly_spread(samples, MOST_LABELED))
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
