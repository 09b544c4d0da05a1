"""Probabilities to rely on: a temperature for the network, and rules for sets of classes and for unknown images.

All is measured on labeled validation images in two halves. The temperature is fitted on the first and becomes a part of
the graph: FP32 takes it into the weights of the last layer; FP16 and INT8, whose weights are coarse, into a float32
multiplication before the softmax. The rules are measured on the second, with the exported file itself, so that they
hold for its precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT, OUTPUT, Conformal, Contract, Reject, Task
from trt_cls.data.folder import Sample, evenly_spread
from trt_cls.data.split import Dataset, evaluation_dataset, halves, training_datasets
from trt_cls.data.stream import WORKERS
from trt_cls.engines.backends import open_engine
from trt_cls.engines.engine import Engine
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ExportError, MissingDependency, RequestError
from trt_cls.evaluation.evaluate import Predictions, predict
from trt_cls.evaluation.metrics import calibration_error
from trt_cls.evaluation.multi_label import binary_cross_entropy, given_labels, truth_of
from trt_cls.evaluation.prediction_sets import UNKNOWN, calibration_rows, conformal_of, reject_of
from trt_cls.evaluation.temperature import (
    fitted_temperature,
    fitted_temperature_of_labels,
    logits_of,
    softened,
    softened_thresholds,
)
from trt_cls.export.original import Original
from trt_cls.export.sample_images import BATCH, ImageSet
from trt_cls.export.torch_to_onnx import require_valid
from trt_cls.spec.experiment import Experiment

MOST_LABELED = 5000
"""Images of both halves: of 2,500 a temperature has a standard error of about 2 %, a coverage of 95 % one of 0.4 %."""
MULTIPLIER, CALIBRATED = "inverse_temperature", "calibrated_logits"
UNSURE = 1e-6
"""Of a probability from its threshold: float32 rounds logits around 10 by as much."""
HOMOGENEOUS = {"Flatten", "Reshape", "Squeeze", "GlobalAveragePool", "AveragePool", "ReduceMean", "Relu", "Identity"}
"""Operations through which a positive factor passes."""


class Halves(NamedTuple):
    """The images, shuffled with a seed."""

    source: Dataset
    first: list[Sample]
    second: list[Sample]


def validation_halves(
    images: Path | None, experiment: Experiment | None, classes: tuple[str, ...], task: Task = "single"
) -> Halves:
    """Images of the folder `images`, else of the spec's validation dataset, else of its evaluation dataset.

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
                "expected one of one class per image; leave them out"
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
        with closing(open_engine(model, "cpu")) as engine:
            found = _answers(engine, images.second)
        if self.coverage is not None:
            rule = conformal_of(found.probabilities, found.labels, self.coverage)
            contract = replace(contract, conformal=rule)
        if self.reject_rate is not None:
            contract = replace(contract, reject=reject_of(found.probabilities, self.reject_rate))
        left_out = f", {len(found.skipped)} can't be decoded" if found.skipped else ""
        for name, value in calibration_rows(replace(contract, temperature=None)):
            say(f"{name.lower()} {value}, by {len(found.samples)} images of {images.source}{left_out}")
        return contract


def fit_temperature(model: Original, images: Halves, say: Callable[[str], None]) -> float:
    """The temperature of `model` on the first half of `images`; `say` gets its effect on the second.

    That of a multi-label model is fitted by binary cross-entropy, on the half that chose no thresholds.

    Raises:
        DataError: the images can't be decoded, or allow no temperature.
    """
    with closing(model.engine()) as engine:
        first, second = _answers(engine, images.first), _answers(engine, images.second)
    task, source = model.contract.task, f"fitted on {len(first.samples)} images of {images.source}"
    if task == "multi":
        truth, of_others = (truth_of(found.samples, found.probabilities.shape[1]) for found in (first, second))
        temperature = fitted_temperature_of_labels(logits_of(first.probabilities, task), truth)
        name, figure = "loss", partial(binary_cross_entropy, truth=of_others)
    else:
        temperature = fitted_temperature(logits_of(first.probabilities), first.labels)
        name, figure = "calibration error", partial(calibration_error, labels=second.labels)
    before, after = map(figure, (second.probabilities, softened(second.probabilities, temperature, task)))
    say(
        f"temperature {temperature:.4g}, {source}; {name} on {len(second.samples)} others {before:.4f} before, "
        f"{after:.4f} after"
    )
    return temperature


def with_temperature(contract: Contract, temperature: float) -> Contract:
    """That of a file whose logits are divided by `temperature`; its thresholds give the same labels."""
    thresholds = contract.thresholds and softened_thresholds(contract.thresholds, temperature)
    return replace(contract, temperature=temperature, thresholds=thresholds)


def calibrated(network: OnnxModel, temperature: float, images: ImageSet, say: Callable[[str], None]) -> OnnxModel:
    """`network` with its logits divided by `temperature`; its arg-max, or labels, on `images` are the same.

    Raises:
        ExportError: it is not.
    """
    ways = ((True,) if network.contract.precision == "fp32" else ()) + (False,)
    what = "arg-max" if network.contract.task == "single" else "labels"
    for fold in ways:
        made = _divided(network, temperature, fold=fold)
        try:
            changed, ties, seen = _compared(network, made, images)
        except MissingDependency:
            return made
        if not changed:
            say(f"temperature {temperature:.4g}: {what} unchanged on {seen - ties} images, {ties} ties left out")
            return made
    raise ExportError(f"temperature {temperature:.4g} changes the {what} of {changed} of {seen} images; expected none")


def _answers(engine: Engine, samples: list[Sample]) -> Predictions:
    return predict(engine, samples, batch_size=BATCH, workers=WORKERS)


def _divided(network: OnnxModel, temperature: float, *, fold: bool) -> OnnxModel:
    proto = deepcopy(network.proto)
    weights = _last_weights(proto.graph) if fold else []
    for tensor in weights:
        values = numpy_helper.to_array(tensor).astype(np.float64) / temperature
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    if not weights:
        _multiply(proto.graph, 1 / temperature)
    made = replace(network, proto=proto, contract=with_temperature(network.contract, temperature))
    require_valid(made)
    return made


def _last_weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Weights and bias that the logits are linear in; empty where they are not, or others use them."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    found, name = [], graph.node[-1].input[0]
    while (node := makers.get(name)) and readers[name] == 1:
        constants = [given for given in node.input if given in tensors]
        found += constants if node.op_type not in HOMOGENEOUS else []
        if node.op_type in ("Gemm", "Conv", "MatMul"):
            sound = len(constants) == len(node.input) - 1 and all(readers[given] == 1 for given in found)
            return [tensors[given] for given in found] if sound else []
        if node.op_type == "Add" and len(constants) == 1:
            (name,) = (given for given in node.input if given not in tensors)
        elif node.op_type in HOMOGENEOUS:
            name = node.input[0]
        else:
            break
    return []


def _multiply(graph: onnx.GraphProto, factor: float) -> None:
    """Puts a multiplication before the softmax, whose input is float32 in every precision."""
    softmax = graph.node[-1]
    node = helper.make_node("Mul", [softmax.input[0], MULTIPLIER], [CALIBRATED], name=CALIBRATED)
    softmax.input[0] = CALIBRATED
    graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), MULTIPLIER))
    graph.node.insert(len(graph.node) - 1, node)


def _compared(before: OnnxModel, after: OnnxModel, images: ImageSet) -> tuple[int, int, int]:
    """Images whose answer changed, those with a tie, and all.

    A tie: the two likeliest classes are within 1 ulp on either side, or a label is within UNSURE of its threshold.
    """
    sessions = []
    for model in (before, after):
        logits = model.proto.graph.node[-1].input[0]
        sessions.append((session_of(model.proto, [logits]), [logits, OUTPUT]))
    changed = ties = seen = 0
    for batch in images.batches():
        (plain, given), (_, found) = (session.run(names, {INPUT: batch}) for session, names in sessions)
        if (own := before.contract.thresholds) is not None and (new := after.contract.thresholds) is not None:
            tied = (np.abs(given - np.array(own)) <= UNSURE).any(axis=1)
            differs = (given_labels(given, own) != given_labels(found, new)).any(axis=1)
        else:
            tied = np.any([_tied(values) for values in (plain, given, found)], axis=0)
            differs = given.argmax(axis=1) != found.argmax(axis=1)
        changed += int(np.sum(~tied & differs))
        ties, seen = ties + int(tied.sum()), seen + len(batch)
    return changed, ties, seen


def _tied(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the two highest of each row are within 1 ulp."""
    second, first = np.sort(values, axis=1)[:, -2:].T
    near: NDArray[np.bool_] = first - second <= np.spacing(np.abs(first))
    return near
