"""A PyTorch network as an ONNX graph in float32, with a softmax or sigmoid, and nothing of the machine inside.

Does not know: other precisions (`fp16`, `int8`), and whether the answers are right (`parity`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from trt_cls.artefacts.onnx_file import DYNAMIC_BATCH, OnnxModel, fault_of, fault_of_ends
from trt_cls.contract import INPUT, OUTPUT, Contract, Task
from trt_cls.errors import ExportError, require
from trt_cls.version import __version__

if TYPE_CHECKING:
    from torch import nn

LOGITS = "logits"
OPSET = 20
"""ONNX Runtime needs 19 for Q/DQ in float16; TensorRT-RTX 1.7 reads 20."""


def onnx_from_module(module: nn.Module, contract: Contract) -> OnnxModel:
    """`module` (which gives logits) and a softmax or sigmoid, in float32, with a dynamic batch; puts it into eval mode.

    The same weights give the same bytes on one machine, in any folder and on any day.

    Raises:
        ExportError: the exporter can't express the network, or what came out is no valid ONNX of the contract's shape.
    """
    proto = _exported(module.eval(), contract.preprocessing.input_shape)
    _name_weights(proto.graph, module)
    _strip(proto)
    _append_answers(proto.graph, contract.task)
    proto.producer_name, proto.producer_version = "trt-cls", __version__
    model = OnnxModel(proto, contract)
    require_valid(model)
    return model


def _exported(module: nn.Module, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
    import torch

    require("onnxscript", "Writing ONNX", "train")  # the exporter's own dependency
    try:
        with _quietly():
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *input_shape),),  # 2: a batch of 1 would be taken for a constant
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim(DYNAMIC_BATCH, min=1)},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(
            f"the network can't be written as ONNX ({reason}); expected operators of opset {OPSET}; -v shows where"
        ) from error
    assert program is not None  # it is, with dynamo=True
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter writes of the machine: stack traces, source paths, module classes."""
    graph = model.graph
    holders: Iterable[Any] = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    weights = {tensor.name for tensor in graph.initializer}
    activations = [info for info in graph.value_info if info.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(activations)


def _name_weights(graph: onnx.GraphProto, module: nn.Module) -> None:
    """Gives the weights of matrix products, which the exporter transposes, their names of the checkpoint again."""
    parameters = dict(module.named_parameters())
    known = {tensor.name for tensor in graph.initializer}
    weights = {
        name: parameter.detach().cpu().numpy().T
        for name, parameter in parameters.items()
        if parameter.dim() == 2 and name not in known
    }
    products = {node.input[1] for node in graph.node if node.op_type == "MatMul"} - parameters.keys()
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in products:
            values = numpy_helper.to_array(tensor)
            if name := next((name for name, weight in weights.items() if np.array_equal(weight, values)), ""):
                names[tensor.name] = name
                tensor.name = name
                del weights[name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _append_answers(graph: onnx.GraphProto, task: Task) -> None:
    # Added here and not by a wrapper around the module, so that weights keep their names of the checkpoint.
    (logits,) = graph.output
    graph.value_info.append(logits)  # a copy
    logits.name = OUTPUT
    if task == "multi":
        graph.node.append(onnx.helper.make_node("Sigmoid", [LOGITS], [OUTPUT], name="sigmoid"))
    else:
        graph.node.append(onnx.helper.make_node("Softmax", [LOGITS], [OUTPUT], name="softmax", axis=1))


def require_valid(model: OnnxModel) -> None:
    """Holds `model` against the ONNX standard, every shape and type inferred, and against its own contract.

    Raises:
        ExportError: it fails.
    """
    if fault := fault_of(model.proto):
        raise ExportError(f"the ONNX graph is not valid: {fault}")
    if fault := fault_of_ends(model):
        raise ExportError(fault)


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings, log lines or prints of the exporter: what matters of them is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
