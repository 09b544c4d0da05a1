"""The engine backends, one row each: which files and providers they run, and which packages they need.

The choices of `--provider`, refusals, `open_engine`, `doctor` and the versions in a report come from this table. To add
a backend: a module beside this one with a class as `engine.Engine` describes it, a row here, an extra in
pyproject.toml. No backend is imported before a file is opened with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from trt_cls.errors import RequestError

if TYPE_CHECKING:
    from trt_cls.engines.engine import Engine

Provider = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
Device = Literal["cpu", "gpu", "either"]


@dataclass(frozen=True)
class Backend:
    """One library that runs model files."""

    name: str
    """For display."""
    engine: str
    """Module beside this one and class, which takes a path, a provider and a number of threads."""
    suffixes: tuple[str, ...]
    devices: Mapping[Provider, Device]
    """The providers that it serves, and where it then runs; "either": the GPU where there is one."""
    extra: str
    """Of this package, which installs it."""
    packages: tuple[str, ...]
    """On PyPI, whose versions can change an answer or its speed; one of them is enough."""
    otherwise: str = ""
    """What to do where another provider is asked for."""
    purpose: str = ""
    """What it is good for, for `doctor` and --help; empty where they say more of it by themselves."""


BACKENDS = (
    Backend(
        "ONNX Runtime", "onnxruntime.OnnxRuntimeEngine", (".onnx",),
        {"auto": "either", "cpu": "cpu", "cuda": "gpu", "tensorrt": "gpu"}, "cpu", ("onnxruntime", "onnxruntime-gpu"),
    ),
    Backend(
        "TensorRT", "tensorrt.engine.TensorRtEngine", (".engine", ".plan"),
        {"auto": "gpu", "cuda": "gpu", "tensorrt": "gpu"}, "gpu", ("tensorrt", "tensorrt-rtx-cu13", "pycuda"),
        otherwise="name the ONNX file that it was built from",
    ),
    Backend(
        "OpenVINO", "openvino.OpenVinoEngine", (".onnx",), {"openvino": "cpu"}, "openvino", ("openvino",),
        purpose="ONNX files on a CPU, fastest for INT8",
    ),
    Backend(
        "torch", "torch.TorchEngine", (".safetensors",), {"auto": "either", "cpu": "cpu", "cuda": "gpu"}, "train",
        ("torch",),
        otherwise="make another file of it first: trt-cls export -m CHECKPOINT -o FILE.onnx --engine FILE.engine",
    ),
)  # fmt: skip


ON_CPU = frozenset(name for backend in BACKENDS for name, device in backend.devices.items() if device == "cpu")
"""Providers that need no GPU."""


def open_engine(path: Path, provider: Provider = "auto", threads: int | None = None) -> Engine:
    """Opens a `.onnx`, `.safetensors`, `.engine` or `.plan` file.

    `threads` limits the CPU threads of a run; None leaves the choice to the backend.

    Raises:
        ArtefactError: the file is missing, damaged, or not of trt-cls.
        DeviceError: `provider` is not available on this machine.
        MissingDependency: the backend is not installed.
        RequestError: `provider` is unknown, or does not run files of this kind.
    """
    from trt_cls.artefacts.model_file import check_model_file

    check_model_file(path)
    module, _, name = _backend(path, provider).engine.rpartition(".")
    engine: Engine = getattr(import_module(f"trt_cls.engines.{module}"), name)(path, provider, threads)
    return engine


def device_of(path: Path, provider: Provider) -> Device:
    """Where the model file `path` runs with `provider`; "cpu" where it can't, which `open_engine` refuses."""
    rows = (backend for backend in BACKENDS if path.suffix in backend.suffixes)
    return next((backend.devices[provider] for backend in rows if provider in backend.devices), "cpu")


def resolved_provider(provider: Provider, *, gpu: bool) -> Provider:
    """`provider`, with "auto" decided: the GPU if the backend can use one (`gpu`), else the CPU.

    TensorRT is never chosen unasked: ONNX Runtime would build an engine for minutes at each start.
    """
    return ("cuda" if gpu else "cpu") if provider == "auto" else provider


def _backend(path: Path, provider: Provider) -> Backend:
    if provider not in PROVIDERS:
        raise RequestError(f'provider "{provider}" is not known; expected one of {", ".join(PROVIDERS)}')
    able = [backend for backend in BACKENDS if path.suffix in backend.suffixes]
    for backend in able:
        if provider in backend.devices:
            return backend
    *others, last = (name for backend in able for name in backend.devices)
    raise RequestError(
        f"{path}: {able[0].name} runs {path.suffix} files, and --provider {provider} was given; expected --provider "
        f"{', '.join(others)} or {last}; {able[0].otherwise}"
    )
