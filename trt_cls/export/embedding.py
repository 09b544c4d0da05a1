"""Preprocessing as nodes of the ONNX graph, for servers that can't do it themselves.

Does not know: resize and crop, which stay outside.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trt_cls.artefacts.onnx_file import DYNAMIC_BATCH, OnnxModel
from trt_cls.contract import INPUT, Preprocessing
from trt_cls.export.torch_to_onnx import require_valid

NORMALIZED = f"{INPUT}_normalized"
PLANES = f"{INPUT}_planes"


def embed_preprocessing(model: OnnxModel) -> OnnxModel:
    """The network of `model` fed with uint8 pixels [N,H,W,C] in RGB order (or gray), as resize and crop leave them.

    Channel order, mean and std are computed in float32 inside, whatever the network computes in. The new contract says
    so, and the engines take such a file as they take others.
    """
    proto, preprocessing = deepcopy(model.proto), model.contract.preprocessing
    graph = proto.graph
    prepend_normalization(graph, preprocessing)
    steps = [
        helper.make_node("Cast", [INPUT], [f"{INPUT}_float"], name=f"{INPUT}_float", to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{INPUT}_float"], [PLANES], name=PLANES, perm=[0, 3, 1, 2]),
    ]
    if preprocessing.channel_order == "bgr":
        reverse = f"{INPUT}_reverse"
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), reverse))
        steps[-1].output[0] = f"{PLANES}_rgb"
        steps.append(helper.make_node("Gather", [f"{PLANES}_rgb", reverse], [PLANES], name=reverse, axis=1))
    graph.node[0].input[0] = PLANES
    for index, node in enumerate(steps):
        graph.node.insert(index, node)
    fed = replace(preprocessing, embedded=True)
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, [DYNAMIC_BATCH, *fed.input_shape]),
    )
    return _checked(model, proto, fed)


def embed_normalization(model: OnnxModel) -> OnnxModel:
    """The same network fed with pixels from 0 to 255, float32 [N,C,H,W] in the same order of channels.

    Its contract says so: divisor 1, means 0, deviations 1.
    """
    preprocessing, proto = model.contract.preprocessing, deepcopy(model.proto)
    zeros, ones = (0.0,) * preprocessing.channels, (1.0,) * preprocessing.channels
    prepend_normalization(proto.graph, preprocessing)
    return _checked(model, proto, replace(preprocessing, divisor=1.0, mean=zeros, std=ones))


def prepend_normalization(graph: onnx.GraphProto, preprocessing: Preprocessing) -> None:
    """Puts `(input / divisor - mean) / std` between the float32 input [N,C,H,W] and what reads it.

    One operation after the other, as in `preprocessing.pillow.normalize`, so that both give the same bits.
    """
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT:
                node.input[index] = NORMALIZED
    steps = (
        ("Div", "divisor", np.float32(preprocessing.divisor)),
        ("Sub", "mean", np.array(preprocessing.mean, np.float32)[:, None, None]),
        ("Div", "std", np.array(preprocessing.std, np.float32)[:, None, None]),
    )
    source = INPUT
    for index, (operator, name, value) in enumerate(steps):
        constant, target = f"{INPUT}_{name}", NORMALIZED if name == "std" else f"{INPUT}_by_{name}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
        graph.node.insert(index, helper.make_node(operator, [source, constant], [target], name=constant))
        source = target


def _checked(model: OnnxModel, proto: onnx.ModelProto, fed: Preprocessing) -> OnnxModel:
    """`model` with the graph `proto`, whose input is what `fed` describes."""
    embedded = replace(model, proto=proto, contract=replace(model.contract, preprocessing=fed))
    require_valid(embedded)
    return embedded
