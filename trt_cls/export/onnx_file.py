"""ONNX files as this package writes them: one network with softmax, its contract inside, nothing of the machine.

How the numbers are stored (float16, Q/DQ) is decided in `precision`; whether the answers are right, in `parity`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from trt_cls.artefacts.onnx_file import PARITY_KEY, contract_of, fault_of, parity_of, read_graph
from trt_cls.artefacts.sidecar import Parity
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.engines.engine import INPUT, OUTPUT
from trt_cls.errors import ArtefactError, ExportError, require
from trt_cls.version import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check",
    "contract_of",
    "onnx_from_module",
    "parity_of",
    "read_onnx",
    "set_metadata",
    "write_onnx",
]

LOGITS = "logits"
BATCH = "N"
OPSET = 20
"""ONNX Runtime needs 19 for Q/DQ in float16; TensorRT-RTX 1.7 reads 20."""


def onnx_from_module(module: nn.Module, contract: Contract) -> onnx.ModelProto:
    """`module` (which gives logits) and a softmax, in float32, with a dynamic batch; puts `module` into eval mode.

    The same weights give the same bytes on one machine, in any folder and on any day.

    Raises:
        ExportError: the exporter can't express the network, or what came out is no valid ONNX of the contract's shape.
    """
    model = _exported(module.eval(), contract.preprocessing.input_shape)
    _strip(model)
    _append_softmax(model.graph)
    model.producer_name, model.producer_version = "trt-cls", __version__
    set_metadata(model, contract)
    check(model)
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
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
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
    """Removes what the exporter tells about the machine: stack traces, source paths, module classes."""
    graph = model.graph
    holders: Iterable[Any] = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    weights = {tensor.name for tensor in graph.initializer}
    activations = [info for info in graph.value_info if info.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(activations)


def _append_softmax(graph: onnx.GraphProto) -> None:
    # Added here and not by a wrapper around the module, so that weights keep their names of the checkpoint.
    (logits,) = graph.output
    predictions = onnx.ValueInfoProto()
    predictions.CopyFrom(logits)
    predictions.name = OUTPUT
    graph.value_info.append(logits)
    graph.output[0].CopyFrom(predictions)
    graph.node.append(onnx.helper.make_node("Softmax", [LOGITS], [OUTPUT], name="softmax", axis=1))


def check(model: onnx.ModelProto) -> None:
    """Holds `model` against the ONNX standard, every shape and type inferred, and against its own contract.

    Raises:
        ExportError: it fails.
    """
    if fault := fault_of(model):
        raise ExportError(f"the ONNX graph is not valid: {fault}")
    _check_ends(model, contract_of(model, "the ONNX graph"))


def _check_ends(model: onnx.ModelProto, contract: Contract) -> None:
    element = onnx.TensorProto.UINT8 if contract.preprocessing.embedded else onnx.TensorProto.FLOAT
    expected = {
        INPUT: (element, [BATCH, *contract.preprocessing.input_shape]),
        OUTPUT: (onnx.TensorProto.FLOAT, [BATCH, len(contract.classes)]),
    }
    found = {info.name: _type_and_shape(info) for info in (*model.graph.input, *model.graph.output)}
    if found != expected:
        raise ExportError(f"the ONNX graph has inputs and outputs {found}; expected {expected} by its contract")


def _type_and_shape(info: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    tensor = info.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def set_metadata(model: onnx.ModelProto, contract: Contract, parity: Parity | None = None) -> None:
    """Makes `contract` and `parity` the whole metadata of `model`."""
    properties = {METADATA_KEY: contract.to_json()}
    if parity is not None:
        properties[PARITY_KEY] = json.dumps(asdict(parity), ensure_ascii=False)
    onnx.helper.set_model_props(model, properties)


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file that `trt-cls export` wrote.

    Raises:
        ArtefactError: it is truncated, damaged or foreign.
    """
    model = read_graph(path)
    try:
        _check_ends(model, contract_of(model, str(path)))
    except ExportError as error:
        raise ArtefactError(f"{path}: {error}; export it again from its .safetensors checkpoint") from error
    return model


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model`; equal models give equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


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
