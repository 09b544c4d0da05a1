"""A temperature for a network: fitted on validation images, and folded into its ONNX graph.

FP32 takes it into the weights of the last layer; FP16 and INT8, whose weights are coarse, into a float32
multiplication before the softmax.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT, OUTPUT, Contract
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ExportError, MissingDependency
from trt_cls.evaluation.metrics import calibration_error
from trt_cls.evaluation.multi_label import binary_cross_entropy, given_labels, truth_of
from trt_cls.evaluation.temperature import (
    fitted_temperature,
    fitted_temperature_of_labels,
    logits_of,
    softened,
    softened_thresholds,
)
from trt_cls.export.sample_images import Halves, ImageSet, answered
from trt_cls.export.torch_to_onnx import check

MULTIPLIER, CALIBRATED = "inverse_temperature", "calibrated_logits"
UNSURE = 1e-6
"""Of a probability from its threshold: float32 rounds logits around 10 by as much."""
HOMOGENEOUS = {"Flatten", "Reshape", "Squeeze", "GlobalAveragePool", "AveragePool", "ReduceMean", "Relu", "Identity"}
"""Operations through which a positive factor passes."""


def fit_temperature(model: Path, images: Halves, say: Callable[[str], None]) -> float:
    """The temperature of `model` on the first half of `images`; `say` gets its effect on the second.

    Raises:
        DataError: the images can't be decoded, or allow no temperature.
    """
    first, second = answered(model, images.first), answered(model, images.second)
    temperature = fitted_temperature(logits_of(first.probabilities), first.labels)
    others, labels = second.probabilities, second.labels
    errors = [calibration_error(given, labels) for given in (others, softened(others, temperature))]
    say(
        f"temperature {temperature:.4g}, fitted on {len(first.samples)} images of {images.source}; calibration error "
        f"on {len(labels)} others {errors[0]:.4f} before, {errors[1]:.4f} after"
    )
    return temperature


def fit_temperature_of_labels(model: Path, images: Halves, say: Callable[[str], None]) -> float:
    """As `fit_temperature`, for a multi-label `model`: by binary cross-entropy, on the half that chose no thresholds.

    Raises:
        DataError: as `fit_temperature`.
    """
    fitted_on, others = answered(model, images.first), answered(model, images.second)
    truth, of_others = (truth_of(found.samples, found.probabilities.shape[1]) for found in (fitted_on, others))
    temperature = fitted_temperature_of_labels(logits_of(fitted_on.probabilities, "multi"), truth)
    given = others.probabilities, softened(others.probabilities, temperature, "multi")
    before, after = (binary_cross_entropy(each, of_others) for each in given)
    say(
        f"temperature {temperature:.4g}, fitted on {len(truth)} images of {images.source}; loss on {len(of_others)} "
        f"others {before:.4f} before, {after:.4f} after"
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


def _divided(network: OnnxModel, temperature: float, *, fold: bool) -> OnnxModel:
    proto = deepcopy(network.proto)
    weights = _last_weights(proto.graph) if fold else []
    for tensor in weights:
        values = numpy_helper.to_array(tensor).astype(np.float64) / temperature
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    if not weights:
        _multiply(proto.graph, 1 / temperature)
    made = replace(network, proto=proto, contract=with_temperature(network.contract, temperature))
    check(made)
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

    A tie are two likeliest classes within 1 ulp on either side, or a label within UNSURE of its threshold.
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
