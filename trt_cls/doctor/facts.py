"""What is installed here, found out without importing any of it.

What is not known here: whether it fits together, see `checks`.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trt_cls.doctor.jetson import Jetson, jetson
from trt_cls.gpu import Gpu, visible_gpu
from trt_cls.preprocessing.nvrtc import nvrtc, version

Version = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """One machine."""

    python: str
    machine: str
    packages: Mapping[str, str]
    """Canonical name → version of every package that Python sees."""
    requirements: Mapping[str, tuple[Requirement, ...]]
    """Canonical name → what the package requires."""
    modules: frozenset[str]
    """Of the modules that can stand here without a package, those that do: JetPack brings its own TensorRT."""
    providers: tuple[str, ...]
    """Of ONNX Runtime, in capitals, beside the CPU."""
    has_nvidia_device: bool
    """The kernel module of the driver is loaded."""
    driver_cuda: Version | None
    """The newest CUDA that the driver runs; None without a driver."""
    gpu: Gpu | None
    torch_cuda: Version | None
    """The CUDA that torch was built for; None: for the CPU, or no torch."""
    nvrtc: str | None
    """The version of the compiler of CUDA kernels."""
    tools: Mapping[str, str]
    """Compiler → version, of those on the PATH."""
    has_native_library: bool
    """The images' executor in C++ was built."""
    jetson: Jetson | None = None


def find_out() -> Facts:
    """The facts of this machine."""
    packages: dict[str, str] = {}
    requirements: dict[str, tuple[Requirement, ...]] = {}
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"] or "")
        if name and name not in packages:  # the first on the path is the one that is imported
            packages[name] = found.version
            requirements[name] = tuple(Requirement(text) for text in found.requires or ())
    return Facts(
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        packages=packages,
        requirements=requirements,
        modules=frozenset(_modules(("tensorrt", "tensorrt_rtx", "onnxruntime"))),
        providers=_providers(),
        has_nvidia_device=Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists(),
        driver_cuda=_driver_cuda(),
        gpu=visible_gpu(),
        torch_cuda=_torch_cuda(),
        nvrtc=_nvrtc(),
        tools={name: version for name in ("nvcc", "g++") if (version := _tool(name))},
        has_native_library=any((Path(__file__).parents[1] / "preprocessing").glob("_host*.so")),
        jetson=jetson(),
    )


def _modules(names: Iterable[str]) -> list[str]:
    """Those that can be imported; a folder without __init__.py, left by an uninstalled package, does not count."""
    specs = ((name, find_spec(name)) for name in names)
    return [name for name, spec in specs if spec is not None and spec.origin is not None]


def _providers() -> tuple[str, ...]:
    """By the libraries that lie beside ONNX Runtime."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return ()
    names = (path.stem.rpartition("_providers_")[2] for path in Path(spec.origin).parent.glob("capi/*_providers_*"))
    return tuple(sorted(name.upper() for name in names if name != "shared"))


def _driver_cuda() -> Version | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _nvrtc() -> str | None:
    library = nvrtc()
    return None if library is None else version(library)


def _torch_cuda() -> Version | None:
    """Read from torch's own file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda.*=\s*'(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def _tool(name: str) -> str | None:
    program = shutil.which(name)
    if program is None:
        return None
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+\.\d+)|(\d+\.\d+\.\d+)", text)
    return (found[1] or found[2]) if found else None
