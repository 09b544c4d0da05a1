"""ONNX graphs in float16, made from those in float32. Does not know: what that does to the answers (`parity`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import INPUT, OUTPUT
from trt_cls.errors import ExportError
from trt_cls.export.torch_to_onnx import LOGITS, require_valid

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
FLUSHED_SHARE = 0.01
"""Of all weights; a trained network has some that weight decay brought near zero, and loses nothing with them."""

log = logging.getLogger(__name__)


def fp16_from_fp32(model: OnnxModel) -> OnnxModel:
    """The same network in float16, strongly typed; two Casts stand between it and input, output and softmax in float32.

    The whole graph between the Casts changes its type, so that no layer is left in float32. Written out here because
    onnxconverter-common 1.16 gives a float16 output, in spite of keep_io_types, as soon as the softmax is kept in
    float32, and clips what float16 can't hold.

    Raises:
        ExportError: a weight is too large for float16, or the graph is not one that `onnx_from_module` wrote.
    """
    proto = deepcopy(model.proto)
    graph = proto.graph
    if graph.node[-1].op_type not in ("Softmax", "Sigmoid") or list(graph.node[-1].input) != [LOGITS]:
        last = graph.node[-1].op_type
        raise ExportError(f"the graph's last node is {last}; expected the Softmax or Sigmoid of {LOGITS}")
    _halve_tensors(graph)
    _halve_operators(graph)
    for info in graph.value_info:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    _insert_casts(graph)
    half = replace(model, proto=proto, contract=replace(model.contract, precision="fp16"))
    require_valid(half)
    return half


def _halve_tensors(graph: onnx.GraphProto) -> None:
    count = flushed = 0
    for name, tensor in _float_tensors(graph):
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0))
        if not largest <= LARGEST_FLOAT16:
            raise ExportError(
                f"fp16: the largest value of {name} is {largest:g}; expected at most {LARGEST_FLOAT16:g}, as float16 "
                "has it; train with weight decay or batch normalization, or export without --fp16 or --int8"
            )
        halved = values.astype(np.float16)
        count += values.size
        flushed += int(np.count_nonzero((halved == 0) & (values != 0)))
        tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    if flushed > FLUSHED_SHARE * count:
        log.warning("fp16: %d of %d weights are too small for float16 and became 0", flushed, count)


def _halve_operators(graph: onnx.GraphProto) -> None:
    """Operators whose output type is an attribute, float32 by default."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


def _float_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Weights and constants in float32, each with the name that a message should give it."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.t.data_type == TensorProto.FLOAT:
                yield node.name, attribute.t


def _insert_casts(graph: onnx.GraphProto) -> None:
    (source,) = graph.input
    halved, restored = f"{INPUT}_fp16", f"{LOGITS}_fp32"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT:
                node.input[index] = halved
    softmax = graph.node.pop()
    softmax.input[0] = restored
    nodes = [
        helper.make_node("Cast", [INPUT], [halved], name="cast_to_fp16", to=TensorProto.FLOAT16),
        *graph.node,
        helper.make_node("Cast", [LOGITS], [restored], name="cast_to_fp32", to=TensorProto.FLOAT),
        softmax,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    _describe(graph, halved, source, TensorProto.FLOAT16)
    _describe(graph, restored, next(info for info in graph.output if info.name == OUTPUT), TensorProto.FLOAT)


def _describe(graph: onnx.GraphProto, name: str, like: onnx.ValueInfoProto, element: int) -> None:
    info = graph.value_info.add()
    info.CopyFrom(like)
    info.name = name
    info.type.tensor_type.elem_type = element
