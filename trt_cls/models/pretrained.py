"""Weights to start training from, matched by name and shape; they may come from another class count or another tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trt_cls.errors import ArtefactError
from trt_cls.models.network import head_of
from trt_cls.models.tao_hdf5 import SUFFIXES, read_keras_model, require_readable
from trt_cls.models.tao_network import tensors_of

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the weights."""
NOT_WEIGHTS = ".num_batches_tracked"


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose name fits and whose shape does not."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} ({'×'.join(map(str, self.found))} in the file, {'×'.join(map(str, self.expected))} here)"


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file and of a network."""

    source: str
    """The file, or whose weights they are."""
    matched: tuple[str, ...]
    """Taken from the file."""
    mismatched: tuple[Mismatch, ...]
    """In both, in other shapes; the network keeps its own."""
    missing: tuple[str, ...]
    """In the network alone; it keeps its own."""
    unused: tuple[str, ...]
    """In the file alone."""
    new_head: bool
    """Whether the layer that tells the classes apart starts afresh."""

    def __str__(self) -> str:
        lines = [f"weights of {self.source}: {len(self.matched)} of {self._expected} tensors taken"]
        lines += [
            f"  {label:18} {len(names):5}  {_some(names)}"
            for label, names in (
                ("of another shape", self.mismatched),
                ("not in the file", self.missing),
                ("not in the network", self.unused),
            )
            if names
        ]
        if self.new_head:
            lines.append("  the head starts afresh")
        return "\n".join(lines)

    @property
    def _expected(self) -> int:
        return len(self.matched) + len(self.mismatched) + len(self.missing)


def load_pretrained(module: nn.Module, path: Path) -> Report:
    """Copies into `module` every tensor of `path` that fits one of its own by name and shape.

    Takes .safetensors, TAO's .hdf5, and PyTorch state dicts (.pth, .pt; also below "state_dict" or "model", and with
    names that begin with "module."), read so that they can't run code.

    Raises:
        ArtefactError: the file can't be read, or not one tensor fits.
        MissingDependency: h5py is not installed, and the file is .hdf5.
    """
    return take(module, _read(path), str(path))


def take(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Report:
    """Copies into `module` every one of `tensors` that fits; `source` names them in messages.

    Raises:
        ArtefactError: not one fits.
    """
    given = _unprefixed(tensors)
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
            f"{source}: none of its {len(given)} tensors fits by name and shape ({_some(given)}); expected names "
            f"such as {next(iter(own))}; set model_config as the weights were trained, or leave "
            "pretrained_model_path out"
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
    return Report(
        source,
        tuple(matched),
        tuple(mismatched),
        missing=tuple(name for name in own if name not in common),
        unused=tuple(name for name in given if name not in common),
        new_head=f"{head_of(module)}.weight" not in matched,
    )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {what}; expected a .safetensors, .hdf5, .pth or .pt file of weights")
    if path.suffix in SUFFIXES:
        require_readable(path)
        return tensors_of(read_keras_model(path))
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # on foreign bytes the unpickler fails with whatever its opcodes come to
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


def _unprefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items() if not name.endswith(NOT_WEIGHTS)}


def _some(names: Iterable[object], limit: int = 3) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
