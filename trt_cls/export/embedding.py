"""Preprocessing as nodes of the ONNX graph, for servers that can't do it themselves.

What of an image reaches the graph (resize, crop) is not known here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trt_cls.artefacts.onnx_file import contract_of, parity_of
from trt_cls.contract import Contract, Preprocessing
from trt_cls.engines.engine import INPUT
from trt_cls.export.onnx_file import BATCH, check, set_metadata

NORMALIZED = f"{INPUT}_normalized"
PLANES = f"{INPUT}_planes"


def embed_preprocessing(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """The network of `contract` fed with uint8 pixels [N,H,W,C] in RGB order (or grey), as resize and crop leave them.

    Channel order, mean and std are computed in float32 inside, whatever the network computes in. The new contract says
    so, and the engines take such a file as they take others.
    """
    embedded = onnx.ModelProto()
    embedded.CopyFrom(model)
    graph, preprocessing = embedded.graph, contract.preprocessing
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
        helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, [BATCH, *fed.input_shape]),
    )
    set_metadata(embedded, replace(contract, preprocessing=fed), parity_of(model))
    check(embedded)
    return embedded


def embed_normalization(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network fed with pixels from 0 to 255, float32 [N,C,H,W] in the same order of channels.

    Its contract says so: divisor 1, means 0, deviations 1.
    """
    contract = contract_of(model, "the ONNX graph")
    channels = contract.preprocessing.channels
    fed = replace(contract.preprocessing, divisor=1.0, mean=(0.0,) * channels, std=(1.0,) * channels)
    embedded = onnx.ModelProto()
    embedded.CopyFrom(model)
    prepend_normalization(embedded.graph, contract.preprocessing)
    set_metadata(embedded, replace(contract, preprocessing=fed), parity_of(model))
    check(embedded)
    return embedded


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
