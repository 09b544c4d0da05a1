"""The evaluation of a multi-label model. Does not know: result files and tables, see `label_results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder
from trt_cls.data.stream import Skipped
from trt_cls.engines.engine import Engine
from trt_cls.evaluation.evaluate import Predictions, of_folder
from trt_cls.evaluation.multi_label import Flags, LabelMetrics, given_labels, measure_labels, same_labels, truth_of


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
