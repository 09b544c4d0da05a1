"""An engine measured on a labelled folder, every image in it, the last and smaller batch too.

What is not known here: files of results and tables, see `results` and `tables`.


Labels for images that have none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.data.stream import Skipped
from trt_cls.distributed.processes import ALONE, Processes
from trt_cls.engines.engine import Engine
from trt_cls.errors import DataError, RequestError
from trt_cls.evaluation.answers import Executor, answers
from trt_cls.evaluation.metrics import Metrics, Probabilities, measure

Progress = Callable[[int], None]
"""Told how many images of this process are done since it was last told, skipped ones too."""


def unwatched(images: int) -> None:
    """The progress of work that nobody looks on."""


@dataclass(frozen=True)
class Seconds:
    """Where the time went."""

    waiting_for_data: float
    """Nothing could be started because no batch was ready; in several processes their mean."""
    inference: float
    """The rest."""
    total: float


@dataclass(frozen=True)
class Predictions:
    """The answers for a list of images."""

    samples: tuple[Sample, ...]
    """Those that were decoded, in the order of the folder."""
    probabilities: Probabilities
    """[samples, classes]"""
    skipped: tuple[Skipped, ...]
    seconds: Seconds


@dataclass(frozen=True)
class Evaluation:
    """What was found, on what, with what."""

    contract: Contract
    backend: str
    predictions: Predictions
    top_k: int
    """Never more than the classes."""
    metrics: Metrics

    @property
    def images_per_second(self) -> float:
        """From file to probabilities."""
        return len(self.predictions.samples) / self.predictions.seconds.total


def evaluate(
    engine: Engine,
    folder: ImageFolder,
    *,
    batch_size: int,
    workers: int,
    top_k: int,
    executor: Executor = "auto",
    progress: Progress = unwatched,
    processes: Processes = ALONE,
) -> Evaluation:
    """Measures `engine` on `folder`; `processes`, each with an engine, share the images and all know the result.

    Raises:
        DataError: nothing of the folder, or of one class, can be decoded.
        EngineError: the run failed, or its answers are no numbers.
        RequestError: the folder was read with other classes than the model's.
    """
    classes = engine.contract.classes
    if folder.classes != classes:
        raise RequestError(
            f"{folder.root}: its classes are {list(folder.classes)}; expected the model's, {list(classes)}; "
            "read the folder with the classes of the model's contract"
        )
    predictions = predict(
        engine,
        folder.samples,
        batch_size=batch_size,
        workers=workers,
        executor=executor,
        progress=progress,
        processes=processes,
    )
    _refuse_lost_class(folder, predictions)
    labels = np.array([sample.label for sample in predictions.samples], dtype=np.int64)
    counted = min(top_k, len(classes))
    metrics = measure(predictions.probabilities, labels, counted)
    return Evaluation(engine.contract, engine.backend, predictions, counted, metrics)


def predict(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int,
    executor: Executor = "auto",
    progress: Progress = unwatched,
    processes: Processes = ALONE,
) -> Predictions:
    """The answers of `engine` for `samples`; images that can't be decoded are listed, not counted.

    `processes`, each with an engine, share `samples`; all of them get the answers for all, and the same as one would.

    Raises:
        DataError: no image can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` "cuda" can't be.
        EngineError: the run failed, or its answers are no numbers.
    """
    processes.wait()  # the time that some take longer to open their engine is not counted
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
        raise DataError(_nothing_decoded(skipped))
    waiting = sum(batch.waited for batch in done) / processes.size
    probabilities = np.concatenate([batch.probabilities for batch in done])
    return Predictions(answered, probabilities, skipped, Seconds(waiting, total - waiting, total))


def _nothing_decoded(skipped: Sequence[Skipped]) -> str:
    first = f", the first is {skipped[0].path}: {skipped[0].reason}" if skipped else ""
    return f"none of {len(skipped)} images can be decoded{first}; expected image files; look at the folder"


def _refuse_lost_class(folder: ImageFolder, predictions: Predictions) -> None:
    left = {sample.label for sample in predictions.samples}
    for sample in folder.samples:
        if sample.label not in left:
            reason = next(skipped.reason for skipped in predictions.skipped if skipped.path == sample.path)
            raise DataError(
                f'{folder.root}: no image of class "{folder.classes[sample.label]}" can be decoded, the first is '
                f"{sample.path}: {reason}; expected at least one; replace the files"
            )


def infer(
    engine: Engine,
    images: Sequence[Path],
    *,
    batch_size: int,
    workers: int,
    executor: Executor = "auto",
    progress: Progress = unwatched,
    processes: Processes = ALONE,
) -> Predictions:
    """The answers of `engine` for `images`; those that can't be decoded are listed, not answered.

    `processes`, each with an engine, share `images`; all of them get the answers for all.

    Raises:
        DataError: no image can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` "cuda" can't be.
        EngineError: the run failed, or its answers are no numbers.
    """
    samples = [Sample(path) for path in images]
    return predict(
        engine,
        samples,
        batch_size=batch_size,
        workers=workers,
        executor=executor,
        progress=progress,
        processes=processes,
    )
