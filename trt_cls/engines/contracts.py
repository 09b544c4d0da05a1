"""The contract of a model file, read without loading its weights and without any framework.

What is not known here: how a model runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from trt_cls.contract import METADATA_KEY, Contract, contract_from_json
from trt_cls.engines.sidecar import read_sidecar
from trt_cls.errors import ArtefactError, did_you_mean
from trt_cls.models import checkpoint

SUFFIXES = (".onnx", ".safetensors", ".engine", ".plan")

# Field numbers of ModelProto and StringStringEntryProto in onnx.proto.
GRAPH, METADATA_PROPS = 7, 14
KEY, VALUE = 1, 2
# Wire types of protobuf.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def read_contract(path: Path) -> Contract:
    """What the model file `path` says of itself.

    Raises:
        ArtefactError: the file is missing, empty, truncated, of another kind, or carries no contract.
    """
    check_model_file(path)
    if path.suffix == ".onnx":
        return _onnx_contract(path)
    if path.suffix == ".safetensors":
        return checkpoint.read_contract(path)
    return read_sidecar(path).contract


def check_model_file(path: Path) -> None:
    """Refuses what can't be a model file, before anything is read from it.

    Raises:
        ArtefactError: `path` is missing, a folder, empty, or has a suffix of no model.
    """
    if path.is_dir():
        raise ArtefactError(f"{path}: is a folder; expected a model file; name one ending in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        cure = "name a file written by trt-cls train or export"
        if path.suffix in (".hdf5", ".h5"):
            cure = f"make one of a TAO model: trt-cls import-tao {path} -o {path.with_suffix('.safetensors')}"
        raise ArtefactError(f'{path}: its suffix is "{path.suffix}"; expected one of {", ".join(SUFFIXES)}; {cure}')
    if not path.exists():
        siblings = [entry.name for entry in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or "; check the path, or write it with trt-cls train or export"
        raise ArtefactError(f"{path}: no such file; expected a model{hint}")
    if path.stat().st_size == 0:
        raise ArtefactError(f"{path}: is empty; expected a model; copy or write it again")


def _onnx_contract(path: Path) -> Contract:
    try:
        with path.open("rb") as file:
            metadata, has_graph = _walk_model(file, path.stat().st_size)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path}: is truncated or no ONNX file ({error}); expected one written by trt-cls export; "
            "copy it or export it again"
        ) from error
    if METADATA_KEY not in metadata:
        found = "carries no contract, so it was not exported by trt-cls" if has_graph else "is no ONNX model"
        raise ArtefactError(
            f"{path}: {found}; expected a file that says its own classes and preprocessing; "
            "write it with trt-cls export -m CHECKPOINT -o FILE.onnx"
        )
    return contract_from_json(metadata[METADATA_KEY], str(path))


def _walk_model(file: BinaryIO, size: int) -> tuple[dict[str, str], bool]:
    """The metadata of a ModelProto, and whether it has a graph; the graph's bytes are stepped over."""
    metadata: dict[str, str] = {}
    has_graph = False
    while file.tell() < size:
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
    return metadata, has_graph


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    parts = {KEY: "", VALUE: ""}
    while file.tell() < end:
        field, length = _varint(file) // 8, _varint(file)
        parts[field] = file.read(min(length, end - file.tell())).decode("utf-8")
    return parts[KEY], parts[VALUE]


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
