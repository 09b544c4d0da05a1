"""The contract of a model file of any kind, read without any framework."""

from __future__ import annotations

from pathlib import Path

from trt_cls.artefacts import checkpoint, onnx_file
from trt_cls.artefacts.sidecar import read_sidecar
from trt_cls.contract import Contract
from trt_cls.errors import ArtefactError, did_you_mean
from trt_cls.spec.differences import encrypted

PLANS = (".engine", ".plan")
SUFFIXES = (".onnx", ".safetensors", *PLANS)


def read_contract(path: Path) -> Contract:
    """What the model file `path` says of itself.

    Raises:
        ArtefactError: the file is missing, empty, truncated, of another kind, or carries no contract.
    """
    check_model_file(path)
    if path.suffix == ".onnx":
        return onnx_file.read_contract(path)
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
        remedy = "name a file written by trt-cls train or export"
        if path.suffix in (".hdf5", ".h5"):
            remedy = f"make one of a TAO model: trt-cls import-tao {path} -o {path.with_suffix('.safetensors')}"
        remedy = encrypted(path.name) or remedy
        raise ArtefactError(f'{path}: its suffix is "{path.suffix}"; expected one of {", ".join(SUFFIXES)}; {remedy}')
    if not path.exists():
        siblings = [entry.name for entry in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or "; check the path, or write it with trt-cls train or export"
        raise ArtefactError(f"{path}: no such file; expected a model{hint}")
    if path.stat().st_size == 0:
        raise ArtefactError(f"{path}: is empty; expected a model; copy or write it again")
