"""The header of a safetensors checkpoint: its metadata and its contract; no tensor is read, no PyTorch needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trt_cls.artefacts.contracts import contract_from_json
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.errors import ArtefactError, one_line


def read_contract(path: Path) -> Contract:
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
    """The error for a file in which the library of safetensors met `error`."""
    return ArtefactError(
        f"{path} can't be read as a safetensors file ({one_line(error)}); it is truncated or of another "
        "format; copy it again, or train or export it again"
    )
