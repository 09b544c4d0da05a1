"""Checkpoints: one safetensors file with the weights and, in its metadata, the contract; it can't run code.

The widths of pruned layers follow from the tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from trt_cls.artefacts.model_file import contract_of, read_metadata, unreadable
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.errors import ArtefactError, RequestError, one_line
from trt_cls.files import atomic
from trt_cls.spec.architectures import is_external

if TYPE_CHECKING:
    from torch import Tensor, nn

TAO_POOLING_KEY = "trt_cls.tao_pooling"
"""Metadata of a network built with tao_pooling: its final pooling is TAO's."""


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode, on the CPU, and its contract."""

    contract: Contract
    module: nn.Module


def save_checkpoint(path: Path, module: nn.Module, contract: Contract) -> None:
    """Writes weights and contract atomically."""
    from safetensors.torch import save

    metadata = {METADATA_KEY: contract.to_json()}
    if getattr(module, "tao_pooling", False):
        metadata[TAO_POOLING_KEY] = "true"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with atomic(path) as beside:
        beside.write_bytes(save(tensors, metadata))  # save_file writes to a name of its own, which kill -9 leaves


def load_checkpoint(path: Path) -> Checkpoint:
    """The network of a checkpoint, with its weights.

    Raises:
        ArtefactError: as `checkpoint_contract`, or the tensors are not those of the network in the contract.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    contract = contract_of(path, metadata)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable(path, error) from error
    tao_pooling = metadata.get(TAO_POOLING_KEY) == "true"
    try:
        module = _outline(contract, tensors, tao_pooling)
    except (RequestError, ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ArtefactError(
            f"{path}: its contract describes no network that its tensors fit: {one_line(error)}"
        ) from error
    own = module.state_dict()
    require_shapes(path, tensors, own, "its contract describes")
    if not is_external(contract.model.arch):
        module.to_empty(device="cpu")
    own.update(tensors)  # keeps the extra state of some libraries' modules
    # Copied, not assigned: tensors mapped from the file are not aligned, and convolve with different rounding.
    module.load_state_dict(own)
    return Checkpoint(contract, module.eval())


def _outline(contract: Contract, tensors: Mapping[str, Tensor], tao_pooling: bool) -> nn.Module:
    """The network on the meta device; one of another library with memory, since not all of it is in its state dict."""
    import torch

    from trt_cls.models import build
    from trt_cls.models.int8_layers import quantize_like
    from trt_cls.models.network import require_answers, resize_layers

    model, num_classes = contract.model, len(contract.classes)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if not is_external(model.arch):
        with torch.device("meta"):
            module = build(model, num_classes, widths(tensors), tao_pooling=tao_pooling)
            quantize_like(module, shapes)
            return module
    module = build(model, num_classes)
    if resize_layers(module, shapes):
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


def require_shapes(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors whose names or shapes are not those of the network that `source` gives.

    Raises:
        ArtefactError: names the first that differs.
    """
    found, wanted = ({name: str(list(t.shape)) for name, t in side.items()} for side in (tensors, expected))
    names = sorted(found.keys() | wanted.keys())
    wrong = [name for name in names if found.get(name) != wanted.get(name)]
    if wrong:
        raise ArtefactError(
            f"{path}: {len(wrong)} of {len(names)} tensors are not those of the network that {source}, "
            f"the first is {wrong[0]}: found {found.get(wrong[0], 'none')}, expected {wanted.get(wrong[0], 'none')}; "
            "write the file again, or name another"
        )
