"""Reads Keras models as TAO saves them (`.hdf5`), with h5py alone: layers, what feeds each, weights.

A file is data: nothing in it is executed, no link out of it is followed, and no array larger than the file is read.
Does not know: what the layers compute; `comparison.py` does.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.errors import ArtefactError, one_line, require
from trt_cls.isolation import python

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".hdf5", ".h5")
TRIAL_SECONDS = 60
"""Far more than reading needs: the largest of TAO's networks, vgg19 with its head, has 0.6 GB."""


@dataclass(frozen=True)
class WeightLayout:
    """Which tensors the arrays of a layer become."""

    tensors: tuple[str, ...]
    """PyTorch's names in Keras' order."""
    needed: int
    """The minimum number of arrays: a bias may be missing."""
    axes: tuple[int, ...] | None = None
    """Transposition of the first array."""


LAYOUTS = {
    "Conv2D": WeightLayout(("weight", "bias"), 1, (3, 2, 0, 1)),
    "DepthwiseConv2D": WeightLayout(("weight", "bias"), 1, (2, 3, 0, 1)),
    "Dense": WeightLayout(("weight", "bias"), 1, (1, 0)),
    "BatchNormalization": WeightLayout(("weight", "bias", "running_mean", "running_var"), 4),
}
"""The layers that have weights, by class."""


@dataclass(frozen=True)
class KerasLayer:
    """One layer as the file describes it; `config` is Keras' own and not checked."""

    name: str
    kind: str
    """Keras' class name."""
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    """Names of the layers that feed it."""
    call: Mapping[str, Any]
    """Keyword arguments of its call; `{"training": False}` for frozen batch normalization."""
    tensors: Mapping[str, NDArray[np.float32]]
    """Its weights in PyTorch's names and layouts; empty where it has none."""


@dataclass(frozen=True)
class KerasModel:
    """A model with one output."""

    path: Path
    name: str
    layers: tuple[KerasLayer, ...]
    """In topological order."""
    output: str
    """Name of the output layer."""


def require_readable(path: Path) -> None:
    """Reads `path` in a process of its own first: libhdf5 crashes or hangs on some damaged files.

    Raises:
        ArtefactError: it crashed or hung.
    """
    trial = python(
        f"from trt_cls.distributed.failure import end_with_parent; end_with_parent({os.getpid()}); "
        f"import pathlib, {__name__} as module; module.read_keras_model(pathlib.Path(sys.argv[1]))",
        str(path),
    )
    try:
        ended = subprocess.run(trial, capture_output=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        why = f"did not end within {TRIAL_SECONDS} s"
    else:
        if ended.returncode >= 0:
            return  # read, or refused with an error that this process will raise too
        why = f"ended by signal {-ended.returncode}"
    raise ArtefactError(f"{path} is damaged: reading it {why}; expected a complete .hdf5 file; copy it again")


def read_keras_model(path: Path) -> KerasModel:
    """The model in `path`.

    Raises:
        ArtefactError: it is missing, truncated, or no Keras model with plain arrays of finite numbers.
        MissingDependency: h5py is not installed.
    """
    h5py = require("h5py", "reading a .hdf5 file", "train")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {what}; expected a Keras model, as TAO writes to RESULTS/weights/")
    try:
        with h5py.File(path, "r") as file:
            return _Reader(path, file).model()
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise ArtefactError(
            f"{path} can't be read as a Keras model ({one_line(error)}); expected an unencrypted .hdf5 file as TAO's "
            "train and prune write it; copy it again, or name another"
        ) from error


class _Reader:
    """Reads one open file; faults are raised as Python's built-in errors."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        self.bytes_left = path.stat().st_size
        """Keras does not compress: the arrays of a valid file are smaller than the file."""

    def model(self) -> KerasModel:
        content = json.loads(self.attribute(self.file, "model_config"))
        if content["class_name"] != "Model":
            raise ValueError(f"it is a {content['class_name']!r}; expected a functional Model")
        config = content["config"]
        layers = tuple(self.layer(entry) for entry in config["layers"])
        names = {layer.name for layer in layers}
        if len(names) != len(layers):
            raise ValueError("two of its layers have the same name")
        outputs = [str(output[0]) for output in config["output_layers"]]
        if len(outputs) != 1 or outputs[0] not in names:
            raise ValueError(f"its outputs are {outputs}; expected one layer")
        return KerasModel(self.path, str(config["name"]), layers, outputs[0])

    def layer(self, entry: Mapping[str, Any]) -> KerasLayer:
        name, kind, calls = str(entry["name"]), str(entry["class_name"]), entry["inbound_nodes"]
        if len(calls) != (0 if kind == "InputLayer" else 1):
            raise ValueError(f"layer {name!r} is called {len(calls)} times; expected each layer once")
        sources = [(str(source), node, tensor, *rest) for source, node, tensor, *rest in calls[0]] if calls else []
        if any((node, tensor) != (0, 0) for _, node, tensor, *_ in sources):
            raise ValueError(f"layer {name!r} reads a second output of another layer")
        call = sources[0][3] if sources and len(sources[0]) > 3 else {}
        inputs = tuple(source[0] for source in sources)
        return KerasLayer(name, kind, dict(entry["config"]), inputs, dict(call), self.tensors(name, kind))

    def tensors(self, name: str, kind: str) -> dict[str, NDArray[np.float32]]:
        group = self.member(self.member(self.file, "model_weights"), name)
        # The names' inner parts are TensorFlow scopes with arbitrary counters: only the order identifies the arrays.
        arrays = [self.array(group, str(weight)) for weight in self.names(group)]
        if not arrays and kind not in LAYOUTS:
            return {}
        if kind not in LAYOUTS:
            raise ValueError(f"layer {name!r} is a {kind} with weights; expected {', '.join(LAYOUTS)}")
        layout = LAYOUTS[kind]
        if not layout.needed <= len(arrays) <= len(layout.tensors):
            raise ValueError(f"layer {name!r} ({kind}) has {len(arrays)} arrays of weights")
        if layout.axes:
            arrays[0] = arrays[0].transpose(layout.axes)
        return dict(zip(layout.tensors, arrays, strict=False))

    def names(self, group: h5py.Group) -> list[str]:
        found = np.atleast_1d(self.attribute(group, "weight_names"))
        return [name.decode() if isinstance(name, bytes) else str(name) for name in found] if found.size else []

    def attribute(self, holder: h5py.Group, name: str) -> Any:
        import h5py

        if name not in holder.attrs:
            raise ValueError(f"{holder.name} has no {name}")
        attribute = holder.attrs.get_id(name)
        if prod(attribute.shape) * attribute.dtype.itemsize > self.path.stat().st_size:
            raise ValueError(f"{name} of {holder.name} is larger than the file")
        if prod(attribute.shape) and h5py.check_string_dtype(attribute.dtype) is None:
            raise ValueError(f"{name} of {holder.name} is no text")  # libhdf5 crashes on some of what it may be instead
        return holder.attrs[name]

    def array(self, group: h5py.Group, name: str) -> NDArray[np.float32]:
        data = self.member(group, name)
        if not hasattr(data, "shape") or data.dtype.kind != "f":
            raise ValueError(f"{data.name} is no array of floating-point numbers")
        if data.external or data.is_virtual:
            raise ValueError(f"{data.name} is kept in another file")
        self.bytes_left -= data.nbytes
        if self.bytes_left < 0:
            raise ValueError(f"{data.name} declares {data.shape}, more than the file holds")
        with np.errstate(over="ignore"):
            array: NDArray[np.float32] = np.asarray(data[()], dtype=np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{data.name} has numbers that are not finite")
        return array

    def member(self, group: h5py.Group, path: str) -> Any:
        """The group or data set at `path` below `group`, reached by hard links only."""
        import h5py

        found: Any = group
        for part in path.split("/"):
            if not isinstance(found, h5py.Group) or not isinstance(found.get(part, getlink=True), h5py.HardLink):
                raise ValueError(f"{found.name} has no {part!r} of its own")
            found = found[part]
        return found
