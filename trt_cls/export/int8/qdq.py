"""INT8 and FP8 graphs: explicit QuantizeLinear and DequantizeLinear (Q/DQ) before layers, the rest in float16.

All is symmetric, weights by output channel, activations by tensor, biases stay float: what TensorRT asks for. A layer's
inputs are quantized and its output is not, so that TensorRT can fuse what follows, and both inputs of a residual
addition are. A bias is added after its layer, where every session of ONNX Runtime leaves it as it is. ONNX Runtime's
quantizer writes the graph. `layers` says which they are, `models.int8_ranges` makes ranges of the measured magnitudes.
FP8 is E4M3, with the largest magnitude / 448 as scale: its steps grow with the value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ExportError, require
from trt_cls.export.fp16 import fp16_from_fp32
from trt_cls.export.int8.layers import quantizable, share_of
from trt_cls.models.int8_ranges import LARGEST, SMALLEST_SCALE, Histogram
from trt_cls.version import __version__

LARGEST_FP8 = 448
"""Of E4M3."""


@dataclass(frozen=True)
class Fp8:
    """What computes in FP8 instead of INT8."""

    layers: Collection[str] = ()
    largest: Mapping[str, float] = field(default_factory=dict)
    """The largest magnitude of each of their activations, by name."""


def measure_magnitudes(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[NDArray[Any]]
) -> dict[str, Histogram]:
    """The magnitudes of `tensors` of a float32 `model` on `batches` of its input.

    Raises:
        ExportError: the network overflows on one of them.
    """
    inside = [name for name in tensors if name != INPUT]
    session = session_of(model, inside)
    found = {name: Histogram() for name in (INPUT, *inside)}
    for batch in batches:
        for name, values in zip(found, (batch, *session.run(inside, {INPUT: batch})), strict=True):
            if not np.isfinite(values).all():
                raise ExportError(
                    f"{name} of the network holds NaN or infinity on a calibration image; expected numbers; "
                    "look at the training, the network answers nothing of use"
                )
            found[name].add(values)
    return found


def trained_layers(model: onnx.ModelProto, ranges: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], list[str]]:
    """The thresholds of activations, and the layers, that `ranges` of a training mean in its float32 graph.

    `ranges` has, by the module's name and in the order of the graph, the largest magnitude of each input.

    Raises:
        ExportError: the graph has no such layers.
    """
    nodes = {node.name: node for node in model.graph.node}
    additions = iter([name for name, largest in ranges.items() if len(largest) > 1])
    thresholds: dict[str, float] = {}
    layers: dict[str, str] = {}
    for name, tensors in quantizable(model).items():
        addition = nodes[name].op_type == "Add"
        layer = next(additions, "") if addition else nodes[name].input[1].removesuffix(".weight")
        if layer in ranges:
            thresholds.update(zip(tensors, ranges[layer], strict=True))
            layers[layer] = name
    if lost := ranges.keys() - layers.keys():
        raise ExportError(
            f"{len(lost)} of {len(ranges)} layers that were trained for INT8 are not in the graph, as {min(lost)}; "
            "expected all; the exporter changed the network: report it with the spec"
        )
    return thresholds, list(layers.values())


def int8_from_fp32(
    model: OnnxModel, thresholds: Mapping[str, float], layers: Collection[str], fp8: Fp8 = Fp8()
) -> OnnxModel:
    """The network with `layers` in INT8, or FP8, and the rest in float16; input, output and softmax stay float32.

    `thresholds` has the largest magnitude kept of each of their activations. A file with any FP8 is called "fp8".

    Raises:
        ExportError: no layer is named, or the rest is too large for float16.
    """
    if not layers:
        raise ExportError("no layer is left for 8 bits; expected some; allow a larger loss, or export with --fp16")
    half = fp16_from_fp32(replace(model, proto=with_qdq(model.proto, thresholds, layers, fp8)))
    share = round(share_of(model.proto, layers), 4)
    return replace(half, contract=replace(half.contract, precision="fp8" if fp8.layers else "int8", eight_bits=share))


def with_qdq(
    model: onnx.ModelProto, thresholds: Mapping[str, float], layers: Collection[str], fp8: Fp8 = Fp8()
) -> onnx.ModelProto:
    """The network with Q/DQ pairs before the inputs and weights of `layers`, all else float32."""
    ort = require("onnxruntime.quantization", "Quantizing to 8 bits", "cpu", package="onnxruntime")
    operators = sorted({node.op_type for node in model.graph.node if node.name in layers})
    ranges = {name: (np.float32(-value), np.float32(value)) for name, value in thresholds.items()}
    copied = deepcopy(model)
    _separate_biases(copied.graph, layers)
    quantizer = ort.QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=False,
        weight_qType=ort.QuantType.QInt8,
        activation_qType=ort.QuantType.QInt8,
        tensors_range=ort.TensorsData(ort.CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=list(layers),
        nodes_to_exclude=[],
        op_types_to_quantize=operators,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,  # weights stay float in the file, for TensorRT to fold
            "QuantizeBias": False,  # TensorRT refuses the int32 biases of ONNX Runtime's own style
            "OpTypesToExcludeOutputQuantization": operators,
            "MinimumRealRange": 2 * LARGEST * SMALLEST_SCALE,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.producer_name, quantized.producer_version = "trt-cls", __version__
    if fp8.layers:
        _to_fp8(quantized.graph, layers, fp8)
    return quantized


def _separate_biases(graph: onnx.GraphProto, layers: Collection[str]) -> None:
    """Moves the biases of `layers` to additions after them, which TensorRT and OpenVINO fuse into the layers again.

    WeightBiasQuantization, one of ONNX Runtime's default optimizations, turns the bias of a Conv or Gemm between Q/DQ
    into integers, by a scale in the file's float16, where they overflow: ONNX Runtime 1.31 changed the labels of 12 of
    64 images of a resnet10. Its quantizer, too, makes weights coarser for the sake of such integers.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        if node.name not in layers or node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        layer, output, name = graph.node[-1], node.output[0], f"{node.name}_bias"
        shape = (1, -1, *[1] * (len(values[node.input[1]].dims) - 2))
        beta = next((attribute.f for attribute in node.attribute if attribute.name == "beta"), 1.0)
        bias = np.float32(beta) * numpy_helper.to_array(values[layer.input.pop()]).reshape(shape)
        graph.initializer.append(numpy_helper.from_array(bias, name))
        layer.output[0] = f"{output}_without_bias"
        graph.node.append(onnx.helper.make_node("Add", [layer.output[0], name], [output], name=name))
    read = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def _to_fp8(graph: onnx.GraphProto, layers: Collection[str], fp8: Fp8) -> None:
    """Gives the FP8 layers among `layers` pairs in E4M3; an activation that INT8 layers read too has one of each."""
    pairs = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    own = [node for node in graph.node if node.name in fp8.layers]
    in_int8 = {name for node in graph.node if node.name in set(layers) - set(fp8.layers) for name in node.input}
    wanted = {name for node in own for name in node.input} & pairs.keys()
    copies = {name: f"{name}_fp8" for name in wanted & in_int8}
    for name in copies:
        _copy_pair(graph, pairs[name])
    for node in own:
        for index, name in enumerate(node.input):
            node.input[index] = copies.get(name, name)
    made = {node.output[0]: node for node in graph.node}
    values = {tensor.name: tensor for tensor in graph.initializer}
    for name in wanted:
        dequantize = made[copies.get(name, name)]
        scale, zero = (values[given] for given in dequantize.input[1:3])
        largest = fp8.largest.get(made[dequantize.input[0]].input[0])
        found = numpy_helper.to_array(scale)  # of INT8; weights have one per channel
        exact = found * np.float32(LARGEST / LARGEST_FP8)
        if largest is not None:
            exact = np.full_like(found, max(largest / LARGEST_FP8, SMALLEST_SCALE))
        scale.CopyFrom(numpy_helper.from_array(exact, scale.name))
        zero.CopyFrom(
            onnx.helper.make_tensor(zero.name, TensorProto.FLOAT8E4M3FN, zero.dims, bytes(exact.size), raw=True)
        )


def _copy_pair(graph: onnx.GraphProto, dequantize: onnx.NodeProto) -> None:
    """A second pair beside the one that ends in `dequantize`, with `_fp8` after all names."""
    ((place, quantize),) = [(i, n) for i, n in enumerate(graph.node) if n.output[0] == dequantize.input[0]]
    added = [deepcopy(quantize), deepcopy(dequantize)]
    for tensor in [tensor for tensor in graph.initializer if tensor.name in dequantize.input[1:]]:
        copied = graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name += "_fp8"
    for node in reversed(added):
        node.name += "_fp8"
        node.output[0] += "_fp8"
        for index in range(0 if node is added[1] else 1, 3):
            node.input[index] += "_fp8"
        graph.node.insert(place, node)
