"""The predictions of an engine for images, and its metrics on a labeled folder.

Does not know: result files and tables, see `results.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder, Sample, listed_images
from trt_cls.data.samples import Samples
from trt_cls.data.stream import Skipped
from trt_cls.distributed.processes import ALONE, Processes
from trt_cls.engines.engine import Engine
from trt_cls.errors import DataError, RequestError
from trt_cls.evaluation.inference import Executor, answers, nothing_decoded
from trt_cls.evaluation.metrics import Metrics, Probabilities, calibration_error, measure
from trt_cls.evaluation.multi_label import Flags, LabelMetrics, given_labels, measure_labels, same_labels, truth_of
from trt_cls.evaluation.prediction_sets import Kind, auroc, counts_of_kinds, decides, in_sets
from trt_cls.evaluation.temperature import softened

Progress = Callable[[int], None]
"""Called with the number of images that this process has just done, skipped ones included."""


@dataclass(frozen=True)
class Seconds:
    """Where the time was spent."""

    waiting_for_data: float
    """Time in which no batch was ready; the mean of several processes."""
    inference: float
    """The rest."""
    total: float


UNTIMED = Seconds(0, 0, 0)
"""Of answers that were stored."""


@dataclass(frozen=True)
class Predictions:
    """The probabilities of a list of images."""

    samples: tuple[Sample, ...]
    """The images that were decoded, in order."""
    probabilities: Probabilities
    """[samples, classes]"""
    skipped: tuple[Skipped, ...]
    seconds: Seconds

    @property
    def labels(self) -> NDArray[np.int64]:
        """[samples], the true classes."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    contract: Contract
    backend: str
    predictions: Predictions
    top_k: int
    """At most the number of classes."""
    metrics: Metrics
    foreign: Predictions | None = None
    """Of images of no class; None: none were given."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All images that could not be decoded."""
        return self.predictions.skipped + (self.foreign.skipped if self.foreign else ())

    @property
    def coverage(self) -> dict[str, float]:
        """How often the sets hold the true class, and how large they are; empty without sets."""
        if (rule := self.contract.conformal) is None:
            return {}
        sets, labels = in_sets(self.predictions.probabilities, rule), self.predictions.labels
        measured = float(sets[np.arange(len(labels)), labels].mean())
        return {"target": rule.coverage, "measured": measured, "mean_set_size": float(sets.sum(axis=1).mean())}

    @property
    def unknown(self) -> dict[str, float]:
        """How well the highest probability separates the images from foreign ones; empty without those."""
        if self.foreign is None:
            return {}
        area = auroc(self.predictions.probabilities, self.foreign.probabilities)
        return {"auroc": area, "num_images": len(self.foreign.samples)}

    @property
    def decisions(self) -> dict[str, dict[Kind, int]]:
        """How many images, and foreign images, get which decision; empty without rules."""
        if not decides(self.contract):
            return {}
        seen = {"decisions": self.predictions, **({"foreign images": self.foreign} if self.foreign else {})}
        return {name: counts_of_kinds(found.probabilities, self.contract) for name, found in seen.items()}

    @property
    def images_per_second(self) -> float:
        """Speed from files to probabilities."""
        return len(self.predictions.samples) / self.predictions.seconds.total

    @property
    def uncalibrated(self) -> Probabilities | None:
        """What the model would answer without the temperature inside its file; None: it has none."""
        temperature = self.contract.temperature
        return None if temperature is None else softened(self.predictions.probabilities, 1 / temperature)

    @property
    def calibration(self) -> dict[str, float | None]:
        """The temperature of a calibrated model, and the calibration error without and with it; else empty."""
        if (before := self.uncalibrated) is None:
            return {}
        error = calibration_error(before, self.predictions.labels)
        return {"temperature": self.contract.temperature, "ece_before": error, "ece_after": self.metrics.ece}


def evaluate(
    engine: Engine, folder: ImageFolder, foreign: Sequence[Sample] = (), *, top_k: int, **how: Any
) -> Evaluation:
    """Evaluates `engine` on `folder`, and on `foreign` images of no class; `how` are the options of `predict`.

    Raises:
        DataError: no image of the folder, or of one class, can be decoded.
        EngineError: the run failed, or a probability is NaN or infinite.
        RequestError: the folder was read with other classes than the model's.
    """
    if engine.contract.task == "multi":
        raise RequestError(
            f"{engine.backend}: a multi-label model, which has no top-k; expected one class per image; "
            "measure it with trt_cls.evaluation.evaluate.evaluate_labels"
        )
    predictions = of_folder(engine, folder, **how)
    others = predict(engine, foreign, **how) if foreign else None
    return measured(engine.contract, engine.backend, predictions, top_k, others)


def measured(
    contract: Contract, backend: str, predictions: Predictions, top_k: int, foreign: Predictions | None = None
) -> Evaluation:
    """The evaluation of predictions for labeled images, all of their classes among the contract's."""
    counted = min(top_k, len(contract.classes))
    metrics = measure(predictions.probabilities, predictions.labels, counted)
    return Evaluation(contract, backend, predictions, counted, metrics, foreign)


def of_folder(engine: Engine, folder: ImageFolder, **how: Any) -> Predictions:
    """The predictions for a labeled folder; see `evaluate`."""
    classes = engine.contract.classes
    if folder.classes != classes:
        raise RequestError(
            f"{folder.root}: its classes are {list(folder.classes)}; expected the model's, {list(classes)}; "
            "read the folder with the classes of the model's contract"
        )
    predictions = predict(engine, folder.samples, **how)
    refuse_lost_class(folder, predictions)
    return replace(predictions, skipped=(*folder.skipped, *predictions.skipped))


def foreign_samples(source: Path) -> Samples:
    """All images below a folder, whose sub-folders mean nothing, or in shards, whose classes mean nothing.

    Raises:
        ArtefactError, DataError: it is missing or holds no image.
    """
    return listed_images(source)


def predict(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    executor: Executor = "auto",
    progress: Progress = lambda images: None,
    processes: Processes = ALONE,
) -> Predictions:
    """The probabilities of `samples`; images that can't be decoded are listed as skipped.

    `processes`, each with an engine, share `samples`; each returns the predictions for all, the same as one process's.

    Raises:
        DataError: no image can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` "cuda" is not possible.
        EngineError: the run failed, or a probability is NaN or infinite.
    """
    processes.wait()  # the time until the last process has opened its engine is not counted
    start = time.perf_counter()
    share = processes.share(samples, batch_size)
    with closing(answers(engine, share, batch_size=batch_size, workers=workers, executor=executor)) as batches:
        done = []
        for batch in batches:
            done.append(batch)
            progress(len(batch.samples) + len(batch.skipped))
    done = [batch for batches_of_one in processes.gather(done) for batch in batches_of_one]
    total = time.perf_counter() - start
    skipped = tuple(image for batch in done for image in batch.skipped)
    answered = tuple(sample for batch in done for sample in batch.samples)
    if not answered:
        raise nothing_decoded(skipped, "look at the folder")
    waiting = sum(batch.waited for batch in done) / processes.size
    probabilities = np.concatenate([batch.probabilities for batch in done])
    return Predictions(answered, probabilities, skipped, Seconds(waiting, total - waiting, total))


def refuse_lost_class(folder: ImageFolder, predictions: Predictions) -> None:
    """Refuses a folder of which no image of a class was decoded.

    Raises:
        DataError: names the class, and its first image.
    """
    left = {label for sample in predictions.samples for label in sample.indices}
    for label in np.flatnonzero(folder.counts).tolist():
        if label not in left:
            first = next(skipped for skipped in predictions.skipped if label in skipped.indices)
            raise DataError(
                f'{folder.root}: no image of class "{folder.classes[label]}" can be decoded, the first is '
                f"{first.path}: {first.reason}; expected at least one; replace the files"
            )


@dataclass(frozen=True)
class LabelEvaluation:
    """The result of an evaluation."""

    contract: Contract
    backend: str
    predictions: Predictions
    truth: Flags
    given: Flags
    """Both [samples, classes]."""
    metrics: LabelMetrics

    @property
    def images_per_second(self) -> float:
        """Speed from files to probabilities."""
        return len(self.predictions.samples) / self.predictions.seconds.total

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images without an answer or without a row of labels."""
        return self.predictions.skipped

    @property
    def warning(self) -> str:
        """A sentence if all images get the same labels."""
        return same_labels(self.given, self.truth, self.contract.classes)

    def named(self, flags: Flags) -> list[str]:
        """The labels of one image, in the classes' order."""
        return [name for name, has in zip(self.contract.classes, flags, strict=True) if has]


def evaluate_labels(engine: Engine, folder: ImageFolder, **how: Any) -> LabelEvaluation:
    """Evaluates `engine`, whose task is "multi", on `folder`; `how` are the options of `evaluate.predict`.

    Raises:
        DataError: no image of the folder, or of one class, can be decoded.
        EngineError: the run failed, or a probability is NaN or infinite.
        RequestError: the folder was read with other classes than the model's.
    """
    predictions, thresholds = of_folder(engine, folder, **how), engine.contract.thresholds
    assert thresholds is not None  # it has them where its task is "multi"
    truth = truth_of(predictions.samples, len(folder.classes))
    given = given_labels(predictions.probabilities, thresholds)
    metrics = measure_labels(predictions.probabilities, truth, thresholds)
    return LabelEvaluation(engine.contract, engine.backend, predictions, truth, given, metrics)
