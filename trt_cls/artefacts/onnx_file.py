"""ONNX files of this package: a graph, and as its metadata the contract and the parity that was measured.

Metadata is read and written here alone. Does not know: how a graph is made or run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from trt_cls.artefacts.contracts import contract_from_json
from trt_cls.artefacts.sidecar import Parity, parity_from_json
from trt_cls.contract import INPUT, METADATA_KEY, OUTPUT, Contract
from trt_cls.errors import ArtefactError, one_line
from trt_cls.text import printable

if TYPE_CHECKING:
    import onnx

PARITY_KEY = "trt_cls.parity"
BATCH = "N"
"""Name of the dynamic dimension."""
MOST_BYTES = 2**31 - 1
"""Of a protobuf message."""
REMEDY = "expected one written by trt-cls export; copy it, or export it again from its .safetensors checkpoint"


@dataclass(frozen=True)
class OnnxModel:
    """A network as an ONNX graph, and what its file says of it."""

    proto: onnx.ModelProto
    contract: Contract
    parity: Parity | None = None
    """None: not measured."""


def read_contract(path: Path) -> Contract:
    """The contract in the ONNX file `path`, read without the onnx package.

    Raises:
        ArtefactError: the file is truncated, foreign, or its contract can't be read.
    """
    return _contract_in(_parsed(path, _metadata_message()), path)


def read_onnx(path: Path) -> OnnxModel:
    """The model in the ONNX file `path`, which `trt-cls export` wrote.

    Raises:
        ArtefactError: it is truncated, damaged or foreign, or its graph is not what its contract says.
    """
    proto = read_graph(path)
    text = _properties(proto).get(PARITY_KEY)
    model = OnnxModel(proto, _contract_in(proto, path), parity_from_json(text, str(path)) if text else None)
    if fault := fault_of_ends(model):
        raise ArtefactError(f"{path}: {fault}; export it again from its .safetensors checkpoint")
    return model


def write_onnx(model: OnnxModel, path: Path) -> None:
    """Writes the graph of `model` with contract and parity as its metadata; equal models give equal bytes."""
    import onnx

    properties = {METADATA_KEY: model.contract.to_json()}
    if model.parity is not None:
        properties[PARITY_KEY] = json.dumps(asdict(model.parity), ensure_ascii=False)
    onnx.helper.set_model_props(model.proto, properties)
    path.write_bytes(model.proto.SerializeToString(deterministic=True))


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph in `path`, valid by the ONNX standard, with all weights inside.

    Raises:
        ArtefactError: it is none, or keeps weights in another file, as trt-cls never does.
    """
    import onnx

    proto: onnx.ModelProto = _parsed(path, onnx.ModelProto)
    external = next((tensor for tensor in _tensors(proto.graph) if tensor.data_location or tensor.external_data), None)
    if external is not None:
        raise ArtefactError(f"{path}: keeps the weight {external.name!r} in another file; {REMEDY}")
    if fault := fault_of(proto):
        raise ArtefactError(f"{path}: no sound ONNX file ({fault}); {REMEDY}")
    return proto


def fault_of(model: onnx.ModelProto) -> str:
    """What the onnx package finds wrong with `model`, every shape and type inferred; empty where it is valid."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        return printable(one_line(error))
    return ""


def require_own_weights(path: Path) -> None:
    """Refuses an ONNX file that names others, before a runtime opens them.

    Raises:
        ArtefactError: it is no ONNX file, or keeps weights in another file.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        suspected = content.find(b"location") >= 0  # without this key no file is named
    if suspected:
        read_graph(path)


def fault_of_ends(model: OnnxModel) -> str:
    """How the inputs and outputs of the graph differ from the contract; empty where they are the contract's."""
    import onnx

    contract = model.contract
    element = onnx.TensorProto.UINT8 if contract.preprocessing.embedded else onnx.TensorProto.FLOAT
    expected = {
        INPUT: (element, [BATCH, *contract.preprocessing.input_shape]),
        OUTPUT: (onnx.TensorProto.FLOAT, [BATCH, len(contract.classes)]),
    }
    graph = model.proto.graph
    found = {info.name: _type_and_shape(info) for info in (*graph.input, *graph.output)}
    if found == expected:
        return ""
    return f"the ONNX graph has inputs and outputs {found}; expected {expected} by its contract"


def _type_and_shape(info: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    tensor = info.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def _parsed(path: Path, kind: Any) -> Any:
    """The file as a protobuf message of the class `kind`."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ArtefactError(f"{path}: has {size:,} bytes, and an ONNX file at most {MOST_BYTES:,}; {REMEDY}")
    try:
        return kind.FromString(path.read_bytes())
    except DecodeError as error:
        raise ArtefactError(f"{path}: is truncated or no ONNX file ({size:,} bytes); {REMEDY}") from error


@cache
def _metadata_message() -> type[Message]:
    """ModelProto with its metadata alone, field 14 of onnx.proto: the parser steps over all else."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="trt_cls/metadata.proto", package="trt_cls", syntax="proto3")
    entry, model = file.message_type.add(name="Entry"), file.message_type.add(name="Model")
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    model.field.add(
        name="metadata_props", number=14, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=".trt_cls.Entry",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("trt_cls.Model"))


def _contract_in(message: Any, path: Path) -> Contract:
    properties = _properties(message)
    if METADATA_KEY not in properties:
        raise ArtefactError(
            f"{path}: carries no contract, so it was not exported by trt-cls; expected a file that says its own "
            "classes and preprocessing; write it with trt-cls export -m CHECKPOINT -o FILE.onnx"
        )
    return contract_from_json(properties[METADATA_KEY], str(path))


def _properties(message: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in message.metadata_props}


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph; protobuf's parser has bounded how deep graphs nest in each other."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
