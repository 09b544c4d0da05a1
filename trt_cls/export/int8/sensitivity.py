"""Layers ranked by what INT8 costs them, and how many must stay in float16 to lose no more than a given accuracy.

Layers are ranked by what quantizing each one alone does to the logits, which takes one short run a layer. How many stay
is then found by bisection, each step measured on labeled images with the very graph that would be written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT, OUTPUT, Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.data.stream import stream
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import DataError
from trt_cls.evaluation.multi_label import mean_average_precision, truth_of
from trt_cls.export.images import BATCH, WORKERS
from trt_cls.export.int8.qdq import int8_from_fp32, with_qdq
from trt_cls.export.onnx_file import LOGITS
from trt_cls.models.int8_ranges import TIE, Method, decibels


@dataclass(frozen=True)
class Layer:
    """What INT8 does to the network through one layer."""

    name: str
    """Of its node in the graph."""
    weights: str
    """What people know it by; the node's name where it has none."""
    operator: str
    signal_to_noise: float
    """Of the logits with this layer alone in INT8, in dB; low is bad."""


@dataclass(frozen=True)
class LayerChoice:
    """Which layers compute in INT8, and the accuracy with them."""

    ranking: tuple[Layer, ...]
    """The costliest first."""
    kept: int
    """So many of the costliest stay in float16."""
    top1_fp32: float
    """Share of the labeled images, 0 to 1, as the two below."""
    top1_all_int8: float
    top1: float

    @property
    def int8(self) -> list[str]:
        """The layers in INT8."""
        return [layer.name for layer in self.ranking[self.kept :]]


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images that are decoded each time they are gone through."""

    preprocessing: Preprocessing
    samples: Sequence[Sample]

    @property
    def metric(self) -> str:
        """What `top1` measures."""
        return "mAP" if any(sample.labels is not None for sample in self.samples) else "top-1"

    def top1(self, model: onnx.ModelProto) -> float:
        """The share of images whose likeliest class is the true one; mean average precision with several labels each.

        Raises:
            DataError: none of them can be decoded.
        """
        session = session_of(model)
        answers: list[NDArray[np.float32]] = []
        seen: list[Sample] = []
        for batch in stream(self.samples, self.preprocessing, batch_size=BATCH, workers=WORKERS):
            if batch.samples:
                answers += session.run([OUTPUT], {INPUT: batch.images})
                seen += batch.samples
        if not seen:
            raise DataError(f"none of {len(self.samples)} labeled images can be decoded; expected image files")
        found = np.concatenate(answers)
        if self.metric == "mAP":
            return mean_average_precision(found, truth_of(seen, found.shape[1]))
        return float(np.mean(found.argmax(1) == [sample.label for sample in seen]))


def rank(
    model: onnx.ModelProto, thresholds: Mapping[str, float], layers: Collection[str], images: NDArray[Any]
) -> tuple[Layer, ...]:
    """`layers` of the float32 `model`, the costliest first, by the logits of a batch of `images`.

    Layers that cost the same stand in the order of `layers`.
    """
    nodes = {node.name: node for node in model.graph.node}
    exact = _logits(model, images)
    found = []
    for name in layers:
        noise = _logits(with_qdq(model, thresholds, [name]), images) - exact
        operator = nodes[name].op_type
        weights = name if operator == "Add" else nodes[name].input[1].removesuffix(".weight")
        found.append(Layer(name, weights, operator, decibels(exact, noise)))
    return costliest_first(found)


def costliest_first(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """`layers` by rising signal to noise; a run of them, each within `TIE` of the next, keeps its own order."""
    rising = sorted(layers, key=lambda layer: layer.signal_to_noise)
    runs: list[list[Layer]] = []
    for layer in rising:
        if not runs or layer.signal_to_noise > runs[-1][-1].signal_to_noise + TIE:
            runs.append([])
        runs[-1].append(layer)
    order = {layer.name: index for index, layer in enumerate(layers)}
    return tuple(layer for run in runs for layer in sorted(run, key=lambda layer: order[layer.name]))


def signal_to_noise(
    model: onnx.ModelProto, ranges: Mapping[Method, Mapping[str, float]], layers: Collection[str], images: NDArray[Any]
) -> dict[Method, float]:
    """Of the logits of a batch of `images`, in dB, with `layers` in INT8 by the `ranges` of each method."""
    exact = _logits(model, images)
    return {
        method: decibels(exact, _logits(with_qdq(model, thresholds, layers), images) - exact)
        for method, thresholds in ranges.items()
    }


def choose(
    model: OnnxModel,
    thresholds: Mapping[str, float],
    ranking: tuple[Layer, ...],
    labeled: LabeledImages,
    max_loss: float,
    say: Callable[[str], None],
) -> LayerChoice:
    """As many layers in INT8 as lose no more than `max_loss` (a share, 0 to 1) of the float32 top-1.

    All of them are tried first, then the number kept in float16 is bisected: more of them are taken to lose less.

    Raises:
        ExportError: with a single layer in INT8 the loss is still larger.
        DataError: no labeled image can be decoded.
    """
    reference = labeled.top1(model.proto)
    measured: dict[int, float] = {}

    def within(kept: int) -> bool:
        names = [layer.name for layer in ranking[kept:]]
        measured[kept] = labeled.top1(int8_from_fp32(model, thresholds, names).proto)
        loss, found = reference - measured[kept], f"{labeled.metric} {measured[kept]:.2%}"
        say(f"  {kept} of {len(ranking)} layers kept in float16: {found}, loss {100 * loss:+.2f}")
        return loss <= max_loss + 1e-9

    kept = 0
    if not within(0):
        low, kept = 0, len(ranking)
        while kept - low > 1:
            middle = (low + kept) // 2
            low, kept = (low, middle) if within(middle) else (middle, kept)
        int8_from_fp32(model, thresholds, [layer.name for layer in ranking[kept:]])  # refuses none
    return LayerChoice(ranking, kept, reference, measured[0], measured[kept])


def table(choice: LayerChoice) -> list[str]:
    """The ranking for people, a line for each layer."""
    width = max(len(layer.weights) for layer in choice.ranking)
    lines = [f"  {'layer':{width}}  operator  signal/noise  computes in"]
    for index, layer in enumerate(choice.ranking):
        precision = "float16" if index < choice.kept else "int8"
        lines.append(f"  {layer.weights:{width}}  {layer.operator:8}  {layer.signal_to_noise:9.1f} dB  {precision}")
    return lines


def _logits(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[np.float32]:
    (logits,) = session_of(model, [LOGITS]).run([LOGITS], {INPUT: images})
    found: NDArray[np.float32] = logits
    return found
