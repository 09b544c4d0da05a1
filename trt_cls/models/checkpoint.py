"""Checkpoints: one safetensors file with the weights and, in its metadata, the contract; nothing in it can run code.

The contract is read without PyTorch. Widths that pruning changed are read off the tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from trt_cls.contract import METADATA_KEY, Contract, contract_from_json
from trt_cls.errors import ArtefactError, RequestError
from trt_cls.files import atomic
from trt_cls.spec.architectures import is_external

if TYPE_CHECKING:
    from torch import Tensor, nn

TAO_POOLING_KEY = "trt_cls.tao_pooling"
"""Metadata of a network built with tao_pooling: its final pooling is TAO's."""


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode, on the CPU, and what it means."""

    contract: Contract
    module: nn.Module


def save_checkpoint(path: Path, module: nn.Module, contract: Contract) -> None:
    """Writes weights and contract, whole or not at all."""
    from safetensors.torch import save_file

    metadata = {METADATA_KEY: contract.to_json()}
    if getattr(module, "tao_pooling", False):
        metadata[TAO_POOLING_KEY] = "true"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with atomic(path) as beside:
        save_file(tensors, beside, metadata)


def read_contract(path: Path) -> Contract:
    """The contract of a checkpoint; reads the file's header alone.

    Raises:
        ArtefactError: the file is missing, truncated, no safetensors file or holds no contract.
    """
    return _contract(path, _metadata(path))


def load_checkpoint(path: Path) -> Checkpoint:
    """The network of a checkpoint, rebuilt, with its weights.

    Raises:
        ArtefactError: as `read_contract`, or the tensors are not those of the network that the contract describes.
    """
    from safetensors.torch import load_file

    metadata = _metadata(path)
    contract = _contract(path, metadata)
    tensors = load_file(path)
    tao_pooling = metadata.get(TAO_POOLING_KEY) == "true"
    try:
        module = _outline(contract, tensors, tao_pooling)
    except (RequestError, ValueError) as error:
        raise ArtefactError(f"{path}: its contract describes no network of its tensors: {error}") from error
    own = module.state_dict()
    _check_shapes(path, tensors, own)
    if not is_external(contract.model.arch):
        module.to_empty(device="cpu")
    own.update(tensors)  # keeps what some libraries' modules note beside their tensors
    # Copied, not assigned: tensors mapped from the file are not aligned, and convolve with other roundings.
    module.load_state_dict(own)
    return Checkpoint(contract, module.eval())


def _outline(contract: Contract, tensors: Mapping[str, Tensor], tao_pooling: bool) -> nn.Module:
    """The network without memory for its weights; that of another library with all that its state dict leaves out."""
    import torch

    from trt_cls.models import build
    from trt_cls.models.fake_quantization import quantize_like
    from trt_cls.models.resizing import require_answers, resize

    model, num_classes = contract.model, len(contract.classes)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if not is_external(model.arch):
        with torch.device("meta"):
            module = build(model, num_classes, widths(tensors), tao_pooling=tao_pooling)
            quantize_like(module, shapes)
            return module
    module = build(model, num_classes)
    if resize(module, shapes):
        require_answers(module, model.input_shape, num_classes)
    quantize_like(module, shapes)
    return module


def widths(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of outputs of each convolution and dense layer, by layer name, as `build` takes it."""
    return {
        name.removesuffix(".weight"): tensor.shape[0]
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.dim() > 1
    }


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    found, wanted = ({name: str(list(t.shape)) for name, t in side.items()} for side in (tensors, expected))
    names = sorted(found.keys() | wanted.keys())
    wrong = [name for name in names if found.get(name) != wanted.get(name)]
    if wrong:
        raise ArtefactError(
            f"{path}: {len(wrong)} of {len(names)} tensors are not those of the network that its contract describes, "
            f"the first is {wrong[0]}: found {found.get(wrong[0], 'none')}, expected {wanted.get(wrong[0], 'none')}; "
            "write the checkpoint again"
        )


def _metadata(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {what}; expected a .safetensors checkpoint, as train writes to RESULTS/weights/")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"{path} can't be read as a safetensors file ({error}); it is truncated or of another format; "
            "copy it again, or train or export it anew"
        ) from error


def _contract(path: Path, metadata: Mapping[str, str]) -> Contract:
    if METADATA_KEY not in metadata:
        raise ArtefactError(
            f"{path} holds no contract (metadata {METADATA_KEY}); expected a checkpoint that trt-cls train wrote; "
            "to start from bare weights, name the file as train_config.pretrained_model_path"
        )
    return contract_from_json(metadata[METADATA_KEY], str(path))
