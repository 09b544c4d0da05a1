"""The model file that an export begins with: its contract, its network as a graph, and the engine that answers for it.

A checkpoint is decoded once. Does not know: what is made of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trt_cls.artefacts.model_file import PLANS, read_contract
from trt_cls.artefacts.onnx_file import OnnxModel, read_onnx
from trt_cls.artefacts.sidecar import Parity
from trt_cls.engines.backends import open_engine
from trt_cls.engines.engine import Engine
from trt_cls.engines.torch import TorchEngine
from trt_cls.errors import ArtefactError, require
from trt_cls.export.int8 import trained_for_int8
from trt_cls.export.torch_to_onnx import onnx_from_module
from trt_cls.files import atomic

if TYPE_CHECKING:
    from trt_cls.models.checkpoint import Checkpoint


class Original:
    """A checkpoint, or an ONNX file that was exported before."""

    def __init__(self, path: Path) -> None:
        """Reads the contract alone.

        Raises:
            ArtefactError: it is an engine, or can't be read.
        """
        if path.suffix in PLANS:
            raise ArtefactError(
                f"{path}: is an engine already; expected a .safetensors checkpoint or an .onnx file; "
                "name the one that it was made from"
            )
        self.path = path
        self.contract = read_contract(path)
        self.is_onnx = path.suffix == ".onnx"

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        require("torch", "Exporting a checkpoint", "train")
        from trt_cls.models.checkpoint import load_checkpoint

        return load_checkpoint(self.path)

    def graph(self, say: Callable[[str], None]) -> OnnxModel:
        """The network as a graph, in its own precision."""
        if self.is_onnx:
            return read_onnx(self.path)
        module = self._checkpoint.module
        if self.contract.precision == "int8":
            return trained_for_int8(deepcopy(module), self.contract, say)
        return onnx_from_module(module, self.contract)

    def engine(self) -> Engine:
        """What everything made of it is compared with, on the CPU; the caller closes it.

        Raises:
            MissingDependency: the backend is not installed.
        """
        return open_engine(self.path, "cpu") if self.is_onnx else TorchEngine(self._checkpoint)

    def is_at(self, path: Path) -> bool:
        """Whether `path` is this very file."""
        return path.exists() and path.samefile(self.path)

    def copy_to(self, path: Path) -> Parity | None:
        """Writes the ONNX file as it is, with its date, the one of its check; returns the parity measured then."""
        parity = read_onnx(self.path).parity
        if not self.is_at(path):
            with atomic(path) as beside:
                beside.write_bytes(self.path.read_bytes())
                status = self.path.stat()
                os.utime(beside, (status.st_atime, status.st_mtime))
        return parity
