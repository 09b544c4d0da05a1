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

Shape = tuple[int | str, ...]

EIGHT_BIT = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operations that runtimes do with 8-bit numbers where all that goes in is dequantized."""
NO_PARAMETERS = ("QuantizeLinear", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze", "Pad", "Clip", "ReduceMean")
"""Operations whose further inputs are settings."""


@dataclass(frozen=True)
class Tensor:
    """An input or output."""

    name: str
    type: str
    shape: Shape


@dataclass(frozen=True)
class Layer:
    """One operation of a graph."""

    name: str
    operation: str
    type: str
    """What it computes with, such as float16; int8 where its inputs are dequantized 8-bit numbers."""
    shape: Shape
    """Of its first output, N for the batch."""
    parameters: int
    multiply_adds: int
    """For one image; 0 for what is neither convolution nor matrix product."""


@dataclass(frozen=True)
class Graph:
    """A network."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    weights: dict[str, int]
    """Type → number of values in the weights."""


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX file.

    Raises:
        ArtefactError: it is no ONNX file, or its shapes contradict each other.
    """
    model = onnx.shape_inference.infer_shapes(onnx_file.read_graph(path), strict_mode=True)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = {info.name: _tensor(info) for info in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    tensors |= {name: Tensor(name, _type(w.data_type), tuple(w.dims)) for name, w in weights.items()}
    counts: dict[str, int] = {}
    for tensor in weights.values():
        counts[_type(tensor.data_type)] = counts.get(_type(tensor.data_type), 0) + prod(tensor.dims)
    return Graph(
        inputs=tuple(tensors[info.name] for info in model.graph.input),
        outputs=tuple(tensors[info.name] for info in model.graph.output),
        layers=tuple(_layers(model, tensors, weights)),
        weights=counts,
    )


def _layers(
    model: onnx.ModelProto, tensors: Mapping[str, Tensor], weights: Mapping[str, TensorProto]
) -> Iterator[Layer]:
    dequantized: dict[str, str] = {}
    """Tensor → what it is dequantized from: weights, where it is they that are quantized in the graph."""
    quantized: dict[str, str] = {}
    for node in model.graph.node:
        out = tensors.get(node.output[0], Tensor(node.output[0], "unknown", ()))
        if node.op_type == "QuantizeLinear":
            quantized[out.name] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            dequantized[out.name] = quantized.get(node.input[0], node.input[0])
        data = [name for name in node.input if name and name not in weights]
        in_eight_bits = node.op_type in EIGHT_BIT and dequantized.keys() >= set(data)
        own = [name for given in node.input[1:] if (name := dequantized.get(given, given)) in weights]
        yield Layer(
            name=node.name or out.name,
            operation=node.op_type,
            type="int8" if in_eight_bits else out.type,
            shape=out.shape,
            parameters=0 if node.op_type in NO_PARAMETERS else sum(prod(weights[name].dims) for name in own),
            multiply_adds=_multiply_adds(node, tensors),
        )


def _multiply_adds(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not {node.output[0], *node.input[:2]} <= set(tensors):
        return 0
    made = prod(size for size in tensors[node.output[0]].shape[1:] if isinstance(size, int))
    second = [size for size in tensors[node.input[1]].shape if isinstance(size, int)]
    if node.op_type == "Conv":
        return made * prod(second[1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return made * (second[-1 if transposed or len(second) < 2 else -2] if second else 0)


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    tensor = info.type.tensor_type
    return Tensor(info.name, _type(tensor.elem_type), tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))


def _type(element: int) -> str:
    if element not in TensorProto.DataType.values():
        return "unknown"
    name: str = onnx.helper.tensor_dtype_to_string(element).removeprefix("TensorProto.").lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
