"""Which layers of a float32 graph 8 bits compute, which stay in float16 and why, and the share of the multiply-adds.

Convolutions and dense layers are computed in 8 bits, in transformers too. Products of two activations (attention) are
not: TensorRT fuses attention in float16, and 8 bits cut the many small probabilities of a softmax to a few steps. Nor
is a residual stream that a normalization reads: it carries a network's largest outliers from block to block. Does not
know: ranges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Literal

import onnx

from trt_cls.engines.onnx_graph import graph_of
from trt_cls.models.int8_ranges import NARROW

Keep = Literal["first", "last"]

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operations that multiply and add."""
LEAST_SHARE = 0.5
"""Of the multiply-adds: with less the file would not be what "8 bits" says."""
NORMALIZATIONS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
"""Those that are computed from the activations."""
PASSING = ("Add", "Reshape", "Transpose", "Identity", "ReduceMean", "Gather", "Slice", "Flatten", "Concat")
"""Operations between a residual stream and the normalization that reads it."""


def quantizable(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The layers that 8 bits can compute, in the graph's order, each with its activations.

    They are convolutions, dense layers, and additions of two activations that come from convolutions.
    """
    stays, streams = _stays(model), _additions(model)
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and not stays[node.name]:
            found[node.name] = (node.input[0],)
        elif node.name in streams:
            found[node.name] = tuple(dict.fromkeys(node.input))
    return found


def first_and_last(model: onnx.ModelProto, keep: Collection[Keep]) -> set[str]:
    """The layers named by `keep`: the first and the last with weights."""
    with_weights = _with_weights(model)
    found = {"first": with_weights[0], "last": with_weights[-1]}
    return {found[name] for name in keep}


def share_of(model: onnx.ModelProto, layers: Collection[str]) -> float:
    """The share of the multiply-adds of the float32 `model` that `layers` compute, 0 to 1."""
    costs = _costs(model)
    return sum(costs[name] for name in layers)


def float_layers_text(model: onnx.ModelProto, layers: Collection[str]) -> str:
    """What multiplies and adds outside `layers`, by reason, with its share, for display. Empty where nothing does."""
    costs, counts, shares = _costs(model), Counter[str](), defaultdict[str, float](float)
    for name, why in _stays(model).items():
        if name not in layers:
            why = why or "left out by request or for its cost"
            counts[why] += 1
            shares[why] += costs[name]
    return ", ".join(f"{count} × {why} ({shares[why]:.1%})" for why, count in counts.most_common())


def _costs(model: onnx.ModelProto) -> dict[str, float]:
    """Each layer's share of the multiply-adds."""
    costs = {layer.name: layer.multiply_adds for layer in graph_of(model).layers}
    total = max(sum(costs.values()), 1)
    return {name: cost / total for name, cost in costs.items()}


def _with_weights(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in constants]


def _stays(model: onnx.ModelProto) -> dict[str, str]:
    """Every product of the graph, and why 8 bits can't compute it; empty where they can."""
    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    last = _with_weights(model)[-1:]
    found = {}
    for node in model.graph.node:
        sizes = constants.get(node.input[1], ()) if node.op_type in PRODUCTS else None
        if sizes is None:
            continue
        found[node.name] = ""
        if not sizes:
            found[node.name] = "product of two activations"
        elif node.input[0] in constants or (node.op_type != "Conv" and len(sizes) != 2):
            found[node.name] = "product that is no dense layer"
        elif node.op_type != "Conv" and min(sizes) < NARROW and node.name not in last:
            found[node.name] = f"dense layer with fewer than {NARROW} inputs or outputs"
    return found


def _additions(model: onnx.ModelProto) -> set[str]:
    """Additions of two activations, neither of which a dense layer or a normalization made, or will read the sum of."""
    constants = {tensor.name for tensor in model.graph.initializer}
    dense: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul", *NORMALIZATIONS) or (node.op_type != "Conv" and dense & set(node.input)):
            dense.update(node.output)
    normalized: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in NORMALIZATIONS or (node.op_type in PASSING and normalized & set(node.output)):
            normalized.update(node.input)
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "Add"
        and not constants & set(node.input)
        and not dense & set(node.input)
        and not normalized & set(node.output)
    }
