"""Which TensorRT can build an engine on this machine, and why.

How it is built is known in `engine_file`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

from trt_cls.artefacts.sidecar import Builder
from trt_cls.errors import DeviceError, MissingDependency
from trt_cls.gpu import Gpu, visible_gpu

Request = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]

HOW_TO_GET_ONE = (
    'pip install "trt-cls[rtx]" (builds without a GPU), or "trt-cls[gpu]" on the machine that runs the engine'
)


@dataclass(frozen=True)
class Choice:
    """A builder that can work here."""

    name: Builder
    module: ModuleType
    gpu: Gpu | None
    """The GPU that it tunes for; None: it compiles for GPU generations."""
    reason: str
    """Why this one."""

    @property
    def version(self) -> str:
        """Of the TensorRT library."""
        return str(self.module.__version__)


def choose_builder(request: Request, *, required: bool) -> tuple[Choice | None, str]:
    """The builder to use, or None and the reason why.

    "auto" takes TensorRT, whose engines are tuned to the GPU at hand, before TensorRT-RTX. TensorRT builds on the GPU
    that will run the engine; TensorRT-RTX compiles for GPU generations and needs no GPU.

    Raises:
        MissingDependency, DeviceError: there is none, though `required` or asked for by name.
    """
    if request == "none":
        return None, "not asked for"
    if request == "tensorrt":
        return _tensorrt(visible_gpu()), ""
    if request == "tensorrt-rtx":
        return _tensorrt_rtx("asked for"), ""
    try:
        return _tensorrt(visible_gpu()), ""
    except MissingDependency:
        why = "tensorrt is not installed"
    except DeviceError:
        why = "tensorrt needs a GPU, and none is visible"
    try:
        return _tensorrt_rtx(why), ""
    except MissingDependency:
        if required:
            raise
        return None, f"{why}, and tensorrt-rtx is not installed"


def _tensorrt(gpu: Gpu | None) -> Choice:
    module = _imported("tensorrt")
    if module is None:
        raise MissingDependency("tensorrt", "Building an engine with TensorRT", "gpu")
    if gpu is None:
        raise DeviceError(
            "TensorRT builds an engine on the GPU that will run it, and no NVIDIA GPU is visible here; expected one; "
            "run the command on the machine that has it, or use --builder tensorrt-rtx, which needs none"
        )
    return Choice("tensorrt", module, gpu, f"tuned to the GPU here, {gpu.name}")


def _tensorrt_rtx(reason: str) -> Choice:
    module = _imported("tensorrt_rtx")
    if module is None:
        raise MissingDependency("tensorrt-rtx", "Building an engine without TensorRT or without a GPU", "rtx")
    return Choice("tensorrt-rtx", module, None, reason)


def _imported(name: str) -> ModuleType | None:
    """The module, if it is TensorRT: an emptied folder or a package of type stubs also answers to the import."""
    try:
        module = import_module(name)
    except ImportError:
        return None
    return module if hasattr(module, "Builder") else None
