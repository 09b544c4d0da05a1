"""The layers of an ONNX graph, with their types, weights and multiply-adds.

Does not know: contracts, and how a graph is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from trt_cls.artefacts import onnx_file

DynamicShape = tuple[int | str, ...]

EIGHT_BIT = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operations that runtimes do with 8-bit numbers where all that goes in is dequantized."""
NO_PARAMETERS = ("QuantizeLinear", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze", "Pad", "Clip", "ReduceMean")
"""Operations whose further inputs are settings."""
MOST_SETTINGS = 64
"""The largest number of values of a constant that shapes may depend on."""


@dataclass(frozen=True)
class Tensor:
    """An input or output."""

    name: str
    type: str
    shape: DynamicShape


@dataclass(frozen=True)
class Layer:
    """One operation of a graph."""

    name: str
    operation: str
    type: str
    """What it computes with, such as float16; int8 where its inputs are dequantized 8-bit numbers."""
    shape: DynamicShape
    """Of its first output, N for the batch."""
    parameters: int
    multiply_adds: int
    """For one image; 0 for what is neither convolution nor matrix product."""

    @property
    def in_eight_bits(self) -> bool:
        """Whether it computes with 8-bit numbers."""
        return self.type in ("int8", "float8e4m3fn")


@dataclass(frozen=True)
class Graph:
    """A network."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    weights: dict[str, int]
    """Type → number of values in the weights."""

    @property
    def eight_bits(self) -> float:
        """Share of the multiply-adds that are computed with 8-bit numbers, 0 to 1."""
        total = sum(layer.multiply_adds for layer in self.layers)
        return sum(layer.multiply_adds for layer in self.layers if layer.in_eight_bits) / max(total, 1)


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file.

    Raises:
        ArtefactError: it is no ONNX file, or its shapes contradict each other.
    """
    return graph_of(onnx_file.read_proto(path))


def graph_of(proto: onnx.ModelProto) -> Graph:
    """The graph of an ONNX model."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    shaped, of_one = _with_shapes(proto), _with_shapes(proto, batch=1)
    tensors = {info.name: _tensor(info) for info in (*shaped.input, *shaped.value_info, *shaped.output)}
    tensors |= {name: Tensor(name, _type(w.data_type), tuple(w.dims)) for name, w in weights.items()}
    # windows of attention are N times some number: only for one image is every shape a number
    sizes = {info.name: _tensor(info).shape for info in (*of_one.input, *of_one.value_info, *of_one.output)}
    sizes |= {name: tensors[name].shape for name in weights}
    counts: dict[str, int] = {}
    for tensor in weights.values():
        counts[_type(tensor.data_type)] = counts.get(_type(tensor.data_type), 0) + prod(tensor.dims)
    return Graph(
        inputs=tuple(tensors[info.name] for info in proto.graph.input),
        outputs=tuple(tensors[info.name] for info in proto.graph.output),
        layers=tuple(_layers(proto, tensors, weights, sizes)),
        weights=counts,
    )


def _with_shapes(model: onnx.ModelProto, batch: int | None = None) -> onnx.GraphProto:
    """The graph of `model` without large weights, every shape inferred; with a `batch`, as numbers."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph, old = light.graph, model.graph
    graph.name = old.name
    graph.node.extend(old.node)
    graph.input.extend(old.input)
    graph.output.extend(old.output)
    for info in (*graph.input, *graph.output):
        if batch and info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_value = batch
    for weight in old.initializer:
        if prod(weight.dims) <= MOST_SETTINGS:
            graph.initializer.append(weight)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    # data_prop: transformers compute shapes in the graph
    return onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph


def _layers(
    model: onnx.ModelProto,
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, TensorProto],
    sizes: Mapping[str, DynamicShape],
) -> Iterator[Layer]:
    dequantized: dict[str, str] = {}
    """Tensor → what it is dequantized from: weights, where it is they that are quantized in the graph."""
    quantized: dict[str, str] = {}
    types: dict[str, str] = {}
    """Dequantized tensor → the type that it was in."""
    for node in model.graph.node:
        out = tensors.get(node.output[0], Tensor(node.output[0], "unknown", ()))
        if node.op_type == "QuantizeLinear":
            quantized[out.name] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            dequantized[out.name] = quantized.get(node.input[0], node.input[0])
            types[out.name] = tensors[node.input[0]].type
        data = [name for name in node.input if name and name not in weights]
        in_eight_bits = node.op_type in EIGHT_BIT and data and dequantized.keys() >= set(data)
        own = [name for given in node.input[1:] if (name := dequantized.get(given, given)) in weights]
        yield Layer(
            name=node.name or out.name,
            operation=node.op_type,
            type=types[data[0]] if in_eight_bits else out.type,
            shape=out.shape,
            parameters=0 if node.op_type in NO_PARAMETERS else sum(prod(weights[name].dims) for name in own),
            multiply_adds=_multiply_adds(node, sizes),
        )


def _multiply_adds(node: onnx.NodeProto, sizes: Mapping[str, DynamicShape]) -> int:
    """By the shapes of one image; 0 where they are not known."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not {node.output[0], *node.input[:2]} <= sizes.keys():
        return 0
    made, second = ([size for size in sizes[name] if isinstance(size, int)] for name in (node.output[0], node.input[1]))
    if node.op_type == "Conv":
        return prod(made) * prod(second[1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return prod(made) * (second[-1 if transposed or len(second) < 2 else -2] if second else 0)


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    tensor = info.type.tensor_type
    return Tensor(info.name, _type(tensor.elem_type), tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))


def _type(element: int) -> str:
    if element not in TensorProto.DataType.values():
        return "unknown"
    name: str = onnx.helper.tensor_dtype_to_string(element).removeprefix("TensorProto.").lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
