"""What an ONNX file says: its metadata, read past the graph without the onnx package, or the whole of it.

Does not know: how a graph is made or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trt_cls.artefacts.contracts import contract_from_json
from trt_cls.artefacts.sidecar import Parity, parity_from_json
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.errors import ArtefactError, one_line
from trt_cls.text import printable

if TYPE_CHECKING:
    import onnx

PARITY_KEY = "trt_cls.parity"
REMEDY = "expected one written by trt-cls export; copy it, or export it again from its .safetensors checkpoint"

# Field numbers of ModelProto and StringStringEntryProto in onnx.proto.
GRAPH, METADATA_PROPS = 7, 14
KEY, VALUE = 1, 2
# Wire types of protobuf.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 10_000
"""Of a ModelProto and of an entry of its metadata; exporters write some twenty."""


def read_contract(path: Path) -> Contract:
    """The contract in the ONNX file `path`; the graph is stepped over.

    Raises:
        ArtefactError: the file is truncated, foreign, or its contract can't be read.
    """
    try:
        with path.open("rb") as file:
            metadata, has_graph = _walk_model(file, path.stat().st_size)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: is truncated or no ONNX file ({error}); {REMEDY}") from error
    if METADATA_KEY not in metadata:
        found = "carries no contract, so it was not exported by trt-cls" if has_graph else "is no ONNX model"
        raise _without_contract(str(path), found)
    return contract_from_json(metadata[METADATA_KEY], str(path))


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph in `path`, valid by the ONNX standard, with all weights inside.

    Raises:
        ArtefactError: it is none, or keeps weights in another file, as trt-cls never does.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ArtefactError(
            f"{path}: is no ONNX file, or not a whole one ({path.stat().st_size:,} bytes); {REMEDY}"
        ) from error
    external = next((tensor for tensor in _tensors(model.graph) if tensor.data_location or tensor.external_data), None)
    if external is not None:
        raise ArtefactError(f"{path}: keeps the weight {external.name!r} in another file; {REMEDY}")
    if fault := fault_of(model):
        raise ArtefactError(f"{path}: no sound ONNX file ({fault}); {REMEDY}")
    return model


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


def contract_of(model: onnx.ModelProto, source: str) -> Contract:
    """The contract inside `model`.

    Raises:
        ArtefactError: there is none, or it can't be read; `source` names the file in the message.
    """
    properties = _properties(model)
    if METADATA_KEY not in properties:
        raise _without_contract(source, "carries no contract, so it was not exported by trt-cls")
    return contract_from_json(properties[METADATA_KEY], source)


def parity_of(model: onnx.ModelProto, source: str = "the ONNX graph") -> Parity | None:
    """The parity measured when `model` was written; see `contract_of`."""
    text = _properties(model).get(PARITY_KEY)
    return parity_from_json(text, source) if text else None


def _properties(model: onnx.ModelProto) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _without_contract(source: str, found: str) -> ArtefactError:
    return ArtefactError(
        f"{source}: {found}; expected a file that says its own classes and preprocessing; "
        "write it with trt-cls export -m CHECKPOINT -o FILE.onnx"
    )


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


def _walk_model(file: BinaryIO, size: int) -> tuple[dict[str, str], bool]:
    """The metadata of a ModelProto, and whether it has a graph; the graph's bytes are stepped over."""
    metadata: dict[str, str] = {}
    has_graph = False
    for _ in range(MOST_FIELDS):
        if file.tell() >= size:
            return metadata, has_graph
        field, wire = divmod(_varint(file), 8)
        if wire == VARINT:
            _varint(file)
            continue
        if wire not in (FIXED64, LENGTH, FIXED32):
            raise ValueError(f"wire type {wire} at byte {file.tell()}")
        length = {FIXED64: 8, FIXED32: 4}.get(wire) or _varint(file)
        if file.tell() + length > size:
            raise ValueError(f"{size} bytes, at least {file.tell() + length} are needed")
        if field == METADATA_PROPS:
            key, value = _entry(file, file.tell() + length)
            metadata[key] = value
        else:
            has_graph = has_graph or field == GRAPH
            file.seek(length, 1)
    raise ValueError(f"more than {MOST_FIELDS:,} fields")


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    parts = {KEY: "", VALUE: ""}
    for _ in range(MOST_FIELDS):
        if file.tell() >= end:
            return parts[KEY], parts[VALUE]
        field, length = _varint(file) // 8, _varint(file)
        parts[field] = file.read(min(length, end - file.tell())).decode("utf-8")
    raise ValueError(f"more than {MOST_FIELDS:,} fields in an entry of its metadata")


def _varint(file: BinaryIO) -> int:
    value, shift = 0, 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise ValueError(f"a number too long at byte {file.tell()}")
    raise ValueError("the file ends inside a number")
