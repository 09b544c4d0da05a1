"""A format for each layer, the cheapest that loses no more than a given accuracy: INT8, FP8 or float16.

Each layer climbs from the cheapest format to float16. The steps are ranked by what the layer alone, in the format that
it leaves, does to the logits, which takes one short run. How many steps are taken is then found by bisection, each
measured on labeled images with the very graph that would be written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT, OUTPUT, Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.data.stream import WORKERS, stream
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import DataError
from trt_cls.evaluation.multi_label import mean_average_precision, truth_of
from trt_cls.export.int8.qdq import Fp8, int8_from_fp32, with_qdq
from trt_cls.export.sample_images import BATCH
from trt_cls.export.torch_to_onnx import LOGITS
from trt_cls.models.int8_ranges import LARGEST, SMALLEST_SCALE, TIE, Method, decibels

EightBits = Literal["int8", "fp8"]


@dataclass(frozen=True)
class RankedLayer:
    """What 8 bits do to the network through one layer."""

    name: str
    """Of its node in the graph."""
    weights: str
    """What people know it by; the node's name where it has none."""
    operator: str
    signal_to_noise: float
    """Of the logits with this layer alone in 8 bits, in dB; low is bad."""
    form: EightBits = "int8"


@dataclass(frozen=True)
class LayerChoice:
    """Which layers compute in 8 bits, and the accuracy with them."""

    ranking: tuple[RankedLayer, ...]
    """The costliest first; a layer with two formats twice, the cheaper format before the other."""
    kept: int
    """So many of the costliest are left out."""
    top1_fp32: float
    """Share of the labeled images, 0 to 1, as the two below."""
    top1_all_int8: float
    top1: float

    @property
    def int8(self) -> list[str]:
        """The layers in 8 bits."""
        return list(forms(self.ranking, self.kept))

    @property
    def fp8(self) -> list[str]:
        """Those of them that are in FP8."""
        return [name for name, form in forms(self.ranking, self.kept).items() if form == "fp8"]


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images, decoded again on each pass."""

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


def forms(ranking: Sequence[RankedLayer], kept: int) -> dict[str, EightBits]:
    """The format of each layer in 8 bits, when so many of the costliest formats are left out."""
    found: dict[str, EightBits] = {}
    for layer in ranking[kept:]:
        found.setdefault(layer.name, layer.form)
    return found


def rank(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    layers: Collection[str],
    images: NDArray[Any],
    formats: Sequence[EightBits] = ("int8",),
    largest: Mapping[str, float] | None = None,
) -> tuple[RankedLayer, ...]:
    """`layers` of the float32 `model` in each of `formats`, the costliest first, by the logits of a batch of `images`.

    `largest` has the largest magnitude of each activation, for FP8. A format that is no better than a cheaper one of
    the same layer is left out. Layers that cost the same stand in the order of `layers`.
    """
    nodes = {node.name: node for node in model.graph.node}
    exact = _logits(model, images)
    found = []
    for name in layers:
        operator, best = nodes[name].op_type, -np.inf
        weights = name if operator == "Add" else nodes[name].input[1].removesuffix(".weight")
        for form in formats:
            fp8 = Fp8([name] if form == "fp8" else [], largest or {})
            ratio = decibels(exact, _logits(with_qdq(model, thresholds, [name], fp8), images) - exact)
            if ratio > best + TIE:
                found.append(RankedLayer(name, weights, operator, ratio, form))
            best = max(best, ratio)
    return costliest_first(found)


def costliest_first(layers: Sequence[RankedLayer]) -> tuple[RankedLayer, ...]:
    """`layers` by rising signal to noise; a run of them, each within `TIE` of the next, keeps its own order."""
    rising = sorted(layers, key=lambda layer: layer.signal_to_noise)
    runs: list[list[RankedLayer]] = []
    for layer in rising:
        if not runs or layer.signal_to_noise > runs[-1][-1].signal_to_noise + TIE:
            runs.append([])
        runs[-1].append(layer)
    order = {(layer.name, layer.form): index for index, layer in enumerate(layers)}
    return tuple(layer for run in runs for layer in sorted(run, key=lambda layer: order[layer.name, layer.form]))


def signal_to_noise(
    model: onnx.ModelProto, ranges: Mapping[Method, Mapping[str, float]], layers: Collection[str], images: NDArray[Any]
) -> dict[Method, float]:
    """Of the logits of a batch of `images`, in dB, with `layers` in INT8 by the `ranges` of each method."""
    exact, found = _logits(model, images), {}
    quantized = with_qdq(model, next(iter(ranges.values())), layers)
    for method, thresholds in ranges.items():
        _set_ranges(quantized, thresholds)
        found[method] = decibels(exact, _logits(quantized, images) - exact)
    return found


def _set_ranges(quantized: onnx.ModelProto, thresholds: Mapping[str, float]) -> None:
    """Gives the activations of an INT8 graph other ranges: quantizing all weights anew takes seconds."""
    for tensor in quantized.graph.initializer:
        largest = thresholds.get(tensor.name.removesuffix("_scale"))
        if largest is not None and tensor.name.endswith("_scale"):
            scale = max(np.float32(largest) / LARGEST, np.float32(SMALLEST_SCALE))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(scale), tensor.name))


def choose(
    model: OnnxModel,
    thresholds: Mapping[str, float],
    ranking: tuple[RankedLayer, ...],
    labeled: LabeledImages,
    max_loss: float,
    say: Callable[[str], None],
    largest: Mapping[str, float] | None = None,
) -> LayerChoice:
    """As many layers in the cheapest format as lose no more than `max_loss` (a share, 0 to 1) of the float32 top-1.

    All of them are tried first, then the number of steps to better formats is bisected: more are taken to lose less.

    Raises:
        ExportError: with a single layer in 8 bits the loss is still larger.
        DataError: no labeled image can be decoded.
    """
    reference = labeled.top1(model.proto)
    measured: dict[int, float] = {}
    names = dict.fromkeys(layer.name for layer in ranking)

    def made(kept: int) -> tuple[OnnxModel, dict[str, EightBits]]:
        found = forms(ranking, kept)
        fp8 = Fp8([name for name, form in found.items() if form == "fp8"], largest or {})
        return int8_from_fp32(model, thresholds, list(found), fp8), found

    def within(kept: int) -> bool:
        half, found = made(kept)
        measured[kept] = labeled.top1(half.proto)
        loss, in_fp8 = reference - measured[kept], [*found.values()].count("fp8")
        formats = f"{len(names) - len(found)} of {len(names)} layers kept in float16" + f", {in_fp8} in FP8" * bool(
            in_fp8
        )
        say(f"  {formats}: {labeled.metric} {measured[kept]:.2%}, loss {100 * loss:+.2f}")
        return loss <= max_loss + 1e-9

    kept = 0
    if not within(0):
        low, kept = 0, len(ranking)
        while kept - low > 1:
            middle = (low + kept) // 2
            low, kept = (low, middle) if within(middle) else (middle, kept)
        made(kept)  # refuses none
    return LayerChoice(ranking, kept, reference, measured[0], measured[kept])


def table(choice: LayerChoice) -> list[str]:
    """The ranking for display, one line per layer."""
    width = max(len(layer.weights) for layer in choice.ranking)
    lines = [f"  {'layer':{width}}  operator  signal/noise  computes in"]
    chosen = forms(choice.ranking, choice.kept)
    # of a layer with two formats, the line of the one that it has
    shown = {layer.name: layer for layer in choice.ranking if chosen.get(layer.name, layer.form) == layer.form}
    for layer in shown.values():
        precision = chosen.get(layer.name, "float16")
        lines.append(f"  {layer.weights:{width}}  {layer.operator:8}  {layer.signal_to_noise:9.1f} dB  {precision}")
    return lines


def _logits(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[np.float32]:
    (logits,) = session_of(model, [LOGITS]).run([LOGITS], {INPUT: images})
    found: NDArray[np.float32] = logits
    return found
