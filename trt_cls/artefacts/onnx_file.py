"""ONNX files of this package: a graph, and as its metadata the contract and the parity that was measured.

Metadata is read and written here alone. Does not know: how a graph is made or run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.sidecar import Parity, parity_from_json
from trt_cls.contract import INPUT, METADATA_KEY, OUTPUT, Contract
from trt_cls.errors import ArtefactError, one_line
from trt_cls.text import printable

if TYPE_CHECKING:
    import onnx

PARITY_KEY = "trt_cls.parity"
DYNAMIC_BATCH = "N"
"""Name of the dynamic dimension."""
MOST_BYTES = 2**31 - 1
"""Of a protobuf message."""
MOST_FIELDS = 10_000
"""Of a model beside its graph: it has some 10, and one for each entry of its metadata and each local function."""
VARINT, DELIMITED = 0, 2
"""Protobuf's wire types; a model has no others."""
METADATA, ENTRY_KEY, ENTRY_VALUE = 14 << 3 | DELIMITED, 1 << 3 | DELIMITED, 2 << 3 | DELIMITED
"""Keys of ModelProto.metadata_props and of both fields of its entries: the number in onnx.proto, and the wire type."""
REMEDY = "expected one written by trt-cls export; copy it, or export it again from its .safetensors checkpoint"


@dataclass(frozen=True)
class OnnxModel:
    """A network as an ONNX graph, with the metadata of its file."""

    proto: onnx.ModelProto
    contract: Contract
    parity: Parity | None = None
    """None: not measured."""


def onnx_contract(path: Path) -> Contract:
    """The contract in the ONNX file `path`, read without the onnx package and without reading the weights.

    Raises:
        ArtefactError: the file is truncated, foreign, or its contract can't be read.
    """
    properties: dict[str, str] = {}
    with _parsing(path), path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        for key, start, end in _fields(content, MOST_FIELDS):
            if key == METADATA:
                entry = content[start:end]
                parts = {part: entry[start:end].decode() for part, start, end in _fields(entry, 2)}
                properties[parts.get(ENTRY_KEY, "")] = parts.get(ENTRY_VALUE, "")
    return _contract_in(properties, path)


def read_onnx(path: Path) -> OnnxModel:
    """The model in the ONNX file `path`, which `trt-cls export` wrote.

    Raises:
        ArtefactError: it is truncated, damaged or foreign, or its graph is not what its contract says.
    """
    proto = read_proto(path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    text = properties.get(PARITY_KEY)
    model = OnnxModel(proto, _contract_in(properties, path), parity_from_json(text, str(path)) if text else None)
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


def read_proto(path: Path) -> onnx.ModelProto:
    """The graph in `path`, valid by the ONNX standard, with all weights inside.

    Raises:
        ArtefactError: it is none, or keeps weights in another file, as trt-cls never does.
    """
    import onnx

    with _parsing(path):
        proto = onnx.ModelProto.FromString(path.read_bytes())
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
        read_proto(path)


def fault_of_ends(model: OnnxModel) -> str:
    """How the inputs and outputs of the graph differ from the contract; empty where they are the contract's."""
    import onnx

    contract = model.contract
    element = onnx.TensorProto.UINT8 if contract.preprocessing.embedded else onnx.TensorProto.FLOAT
    expected = {
        INPUT: (element, [DYNAMIC_BATCH, *contract.preprocessing.input_shape]),
        OUTPUT: (onnx.TensorProto.FLOAT, [DYNAMIC_BATCH, len(contract.classes)]),
    }
    graph = model.proto.graph
    found = {info.name: _type_and_shape(info) for info in (*graph.input, *graph.output)}
    if found == expected:
        return ""
    return f"the ONNX graph has inputs and outputs {found}; expected {expected} by its contract"


def _type_and_shape(info: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
    tensor = info.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Turns the faults that protobuf's parser and `_fields` find in `path` into an ArtefactError."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ArtefactError(f"{path}: has {size:,} bytes, and an ONNX file at most {MOST_BYTES:,}; {REMEDY}")
    try:
        yield
    except (DecodeError, ValueError) as error:
        raise ArtefactError(f"{path}: is truncated or no ONNX file ({size:,} bytes); {REMEDY}") from error


def _fields(content: mmap | bytes, most: int) -> Iterator[tuple[int, int, int]]:
    """The key of each field of a protobuf message, and where its content begins and ends; the content is not read.

    Raises:
        ValueError: the message is truncated, or has more than `most` fields or one of another wire type.
    """
    end = 0
    for _ in range(most):
        if end >= len(content):
            break
        key, start = _varint(content, end)
        value, end = _varint(content, start)
        if key & 7 == DELIMITED:
            start, end = end, end + value
        elif key & 7 != VARINT:
            raise ValueError(f"wire type {key & 7}")
        yield key, start, end
    if end != len(content):
        raise ValueError(f"{len(content)} bytes found, expected {end}")


def _varint(content: mmap | bytes, start: int) -> tuple[int, int]:
    """A number in protobuf's encoding, 7 bits per byte, the lowest first; and where it ends."""
    value = 0
    for index, byte in enumerate(content[start : start + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, start + index + 1
    raise ValueError("a number without end")


def _contract_in(properties: Mapping[str, str], path: Path) -> Contract:
    if METADATA_KEY not in properties:
        raise ArtefactError(
            f"{path}: carries no contract, so it was not exported by trt-cls; expected a file that says its own "
            "classes and preprocessing; write it with trt-cls export -m CHECKPOINT -o FILE.onnx"
        )
    return contract_from_json(properties[METADATA_KEY], str(path))


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
