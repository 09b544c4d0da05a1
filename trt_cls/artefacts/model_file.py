"""The contract of a model file of any kind, and the header of a checkpoint, read without any framework or tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.onnx_file import onnx_contract
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.errors import ArtefactError, did_you_mean, one_line
from trt_cls.spec.differences import encrypted

PLANS = (".engine", ".plan")
MODEL_SUFFIXES = (".onnx", ".safetensors", *PLANS)


def read_contract(path: Path) -> Contract:
    """The contract that the model file `path` carries.

    Raises:
        ArtefactError: the file is missing, empty, truncated, of another kind, or carries no contract.
    """
    check_model_file(path)
    if path.suffix == ".onnx":
        return onnx_contract(path)
    if path.suffix == ".safetensors":
        return checkpoint_contract(path)
    from trt_cls.artefacts.sidecar import read_sidecar

    return read_sidecar(path).contract


def check_model_file(path: Path) -> None:
    """Refuses what can't be a model file, before anything is read from it.

    Raises:
        ArtefactError: `path` is missing, a folder, empty, or has a suffix of no model.
    """
    if path.is_dir():
        raise ArtefactError(
            f"{path}: is a folder; expected a model file; name one ending in {', '.join(MODEL_SUFFIXES)}"
        )
    if path.suffix not in MODEL_SUFFIXES:
        remedy = "name a file written by trt-cls train or export"
        if path.suffix in (".hdf5", ".h5"):
            remedy = f"make one of a TAO model: trt-cls import-tao {path} -o {path.with_suffix('.safetensors')}"
        remedy = encrypted(path.name) or remedy
        raise ArtefactError(
            f'{path}: its suffix is "{path.suffix}"; expected one of {", ".join(MODEL_SUFFIXES)}; {remedy}'
        )
    if not path.exists():
        siblings = [entry.name for entry in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or "; check the path, or write it with trt-cls train or export"
        raise ArtefactError(f"{path}: no such file; expected a model{hint}")
    if path.stat().st_size == 0:
        raise ArtefactError(f"{path}: is empty; expected a model; copy or write it again")


def checkpoint_contract(path: Path) -> Contract:
    """The contract of a checkpoint.

    Raises:
        ArtefactError: the file is missing, truncated, no safetensors file or holds no contract.
    """
    return contract_of(path, read_metadata(path))


def read_metadata(path: Path) -> Mapping[str, str]:
    """The texts in a checkpoint's header.

    Raises:
        ArtefactError: the file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no regular file"
        raise ArtefactError(f"{path} {what}; expected a .safetensors checkpoint, as train writes to RESULTS/weights/")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def contract_of(path: Path, metadata: Mapping[str, str]) -> Contract:
    """The contract in the `metadata` of the checkpoint `path`.

    Raises:
        ArtefactError: there is none, or it can't be read.
    """
    if METADATA_KEY not in metadata:
        raise ArtefactError(
            f"{path} holds no contract (metadata {METADATA_KEY}); expected a checkpoint that trt-cls train wrote; "
            "to start from bare weights, name the file as train_config.pretrained_model_path"
        )
    return contract_from_json(metadata[METADATA_KEY], str(path))


def unreadable(path: Path, error: Exception) -> ArtefactError:
    """The error for a file that the safetensors library could not read, with its `error`."""
    return ArtefactError(
        f"{path} can't be read as a safetensors file ({one_line(error)}); it is truncated or of another "
        "format; copy it again, or train or export it again"
    )
