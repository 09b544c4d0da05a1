"""Pretrained weights for a training, matched by name and shape; also from other class counts and other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trt_cls.artefacts.model_file import checkpoint_contract
from trt_cls.errors import ArtefactError
from trt_cls.models.checkpoint import widths
from trt_cls.models.int8_ranges import SCALE
from trt_cls.models.network import head_of, require_answers, resize_layers
from trt_cls.models.tao.hdf5 import HDF5_SUFFIXES, read_keras_model, require_readable
from trt_cls.models.tao.network import import_network, tensors_of
from trt_cls.spec.differences import encrypted
from trt_cls.spec.experiment import ModelConfig
from trt_cls.text import listed

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts store the state dict."""
NOT_WEIGHTS = (".num_batches_tracked", SCALE)


@dataclass(frozen=True)
class Mismatch:
    """A tensor with a matching name and another shape."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} ({'×'.join(map(str, self.found))} in the file, {'×'.join(map(str, self.expected))} here)"


@dataclass(frozen=True)
class LoadedWeights:
    """Which tensors of a file were loaded into a network."""

    source: str
    """The file, or the name of the weights."""
    matched: tuple[str, ...]
    """Loaded from the file."""
    mismatched: tuple[Mismatch, ...]
    """In both, with other shapes; not loaded."""
    missing: tuple[str, ...]
    """Only in the network."""
    unused: tuple[str, ...]
    """Only in the file."""
    new_head: bool
    """Whether the head keeps its random weights."""
    narrowed: int = 0
    """Layers of the network that took the width of a pruned file's layers."""

    def __str__(self) -> str:
        expected = len(self.matched) + len(self.mismatched) + len(self.missing)
        lines = [f"weights of {self.source}: {len(self.matched)} of {expected} tensors taken"]
        if self.narrowed:
            lines.append(f"  {self.narrowed} layers are as narrow as in the file, which was pruned")
        lines += [
            f"  {label:18} {len(names):5}  {listed(names, 3)}"
            for label, names in (
                ("of another shape", self.mismatched),
                ("not in the file", self.missing),
                ("not in the network", self.unused),
            )
            if names
        ]
        if self.new_head:
            lines.append("  the head is newly initialized")
        return "\n".join(lines)


def load_pretrained(module: nn.Module, path: Path, config: ModelConfig | None = None) -> LoadedWeights:
    """Copies into `module` every tensor of `path` that fits one of its own by name and shape.

    Takes .safetensors, TAO's .hdf5, and PyTorch state dicts (.pth, .pt; also below "state_dict" or "model", and with
    names that begin with "module."), which can't run code. If `path` is a pruned network of the architecture of
    `config`, from which `module` was built, the layers of `module` take its widths.

    Raises:
        ArtefactError: the file can't be read, no tensor fits, or a pruned network's layers do not fit the others.
        MissingDependency: the file is .hdf5 and h5py is not installed.
    """
    tensors = _read(path)
    narrowed = 0
    if config and _is_narrower(tensors, module) and _is_of(path, config):
        narrowed = _narrow(module, tensors, path, config)
    return replace(take(module, tensors, str(path)), narrowed=narrowed)


def take(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadedWeights:
    """Copies into `module` every one of `tensors` that fits; `source` names them in messages.

    Raises:
        ArtefactError: none fits.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items() if not name.endswith(NOT_WEIGHTS)}
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(NOT_WEIGHTS)}
    common = own.keys() & given.keys()
    matched = [name for name in own if name in common and own[name].shape == given[name].shape]
    mismatched = [
        Mismatch(name, tuple(given[name].shape), tuple(own[name].shape))
        for name in own
        if name in common.difference(matched)
    ]
    if not matched:
        raise ArtefactError(
            f"{source}: none of its {len(given)} tensors fits by name and shape ({listed(given, 3)}); expected names "
            f"such as {next(iter(own))}; set model_config as the weights were trained, or leave "
            "pretrained_model_path out"
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
    return LoadedWeights(
        source,
        tuple(matched),
        tuple(mismatched),
        missing=tuple(name for name in own if name not in common),
        unused=tuple(name for name in given if name not in common),
        new_head=f"{head_of(module)}.weight" not in matched,
    )


def _is_narrower(tensors: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether a layer before the head has fewer filters than in `module`."""
    found, own, head = widths(tensors), widths(module.state_dict()), head_of(module)
    return any(found.get(name, width) < width for name, width in own.items() if name != head)


def _is_of(path: Path, config: ModelConfig) -> bool:
    """Whether a file declares the architecture of `config`."""
    try:
        own = import_network(path).config if path.suffix in HDF5_SUFFIXES else checkpoint_contract(path).model
    except ArtefactError:
        return False
    return (own.arch, own.n_layers) == (config.arch, config.n_layers)


def _narrow(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, config: ModelConfig) -> int:
    """Resizes layers for `tensors`, but the head keeps its number of classes. Returns how many layers changed."""
    head, given = head_of(module), _head_in(tensors, module)
    classes = module.get_parameter(f"{head}.weight").shape[0]
    shapes: dict[str, Sequence[int]] = {name: tensor.shape for name, tensor in tensors.items()}
    if weight := shapes.get(f"{given}.weight"):
        shapes[f"{head}.weight"] = (classes, *weight[1:])
    shapes.pop(f"{head}.bias", None)
    changed = resize_layers(module, shapes)
    try:
        require_answers(module, config.input_shape, classes)
    except ValueError as error:
        raise ArtefactError(
            f"{path} is a pruned {config.arch} that does not fit the spec's model_config ({error}); expected the "
            "model_config that it was pruned with; set the same options and input_image_size"
        ) from error
    return len(changed)


def _head_in(tensors: Mapping[str, Tensor], module: nn.Module) -> str:
    """The head's name in the file: the only layer that `module` lacks, if the number of classes is part of its name.

    An example is resnet's `head_fc10`.
    """
    foreign, head = widths(tensors).keys() - widths(module.state_dict()).keys(), head_of(module)
    return foreign.pop() if len(foreign) == 1 and f"{head}.weight" not in tensors else head


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {what}; expected a .safetensors, .hdf5, .pth or .pt file of weights")
    if hint := encrypted(path.name):
        raise ArtefactError(f"{path}: {hint}")
    if path.suffix in HDF5_SUFFIXES:
        require_readable(path)
        return tensors_of(read_keras_model(path))
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # on arbitrary bytes the unpickler raises errors of any kind
        raise ArtefactError(
            f"{path} can't be read as weights ({type(error).__name__}): it is truncated, of another format, or holds "
            "more than tensors; expected a .safetensors file, or what torch.save(model.state_dict(), PATH) writes"
        ) from error
    return {name: tensor for name, tensor in _unwrapped(loaded, path).items() if isinstance(tensor, Tensor)}


def _unwrapped(loaded: Any, path: Path) -> Mapping[str, Any]:
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
        if all(isinstance(name, str) for name in inner):
            return inner
    raise ArtefactError(f"{path} holds a {type(loaded).__name__}; expected a state dict, a mapping of names to tensors")
