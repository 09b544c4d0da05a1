"""What is installed on this machine, collected without importing it, and which Jetson it is.

Does not know: whether it works together, see `checks`.
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

from trt_cls.gpu import Gpu, visible_gpu
from trt_cls.preprocessing.nvrtc import nvrtc, version

Version = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """The facts of one machine."""

    python: str
    machine: str
    packages: Mapping[str, str]
    """Canonical name → version of every installed package."""
    requirements: Mapping[str, tuple[Requirement, ...]]
    """Canonical name → requirements of the package."""
    modules: frozenset[str]
    """Which of tensorrt, tensorrt_rtx and onnxruntime can be imported; JetPack installs TensorRT without a package."""
    providers: tuple[str, ...]
    """ONNX Runtime's execution providers, in capitals, without the CPU."""
    has_nvidia_device: bool
    """Whether the driver's kernel module is loaded."""
    driver_cuda: Version | None
    """The newest CUDA version that the driver supports; None without a driver."""
    gpu: Gpu | None
    torch_cuda: Version | None
    """The CUDA version that torch was built for; None: for the CPU, or no torch."""
    nvrtc: str | None
    """The version of NVRTC, the compiler of CUDA kernels."""
    tools: Mapping[str, str]
    """Compiler → version, of those on the PATH."""
    has_native_library: bool
    """Whether the C++ library for images was built."""
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
        has_native_library=(Path(__file__).parents[1] / "preprocessing" / "_host.so").exists(),
        jetson=jetson(),
    )


def _modules(names: Iterable[str]) -> list[str]:
    """Those that can be imported; an empty folder that an uninstalled package left behind does not count."""
    specs = ((name, find_spec(name)) for name in names)
    return [name for name, spec in specs if spec is not None and spec.origin is not None]


def _providers() -> tuple[str, ...]:
    """Known from the libraries beside ONNX Runtime."""
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


JETPACKS = {34: 5, 35: 5, 36: 6, 38: 7}
"""Major version of Linux for Tegra → JetPack."""
MOST_BYTES = 1 << 16
"""Bytes of a file that are looked at."""


@dataclass(frozen=True)
class Jetson:
    """One board."""

    model: str
    release: str
    """Of Linux for Tegra, as in "36.4.3"; empty where it is not known."""
    power_mode: str
    """The name that nvpmodel gives it, as in "MAXN"; empty where it is not known."""

    @property
    def jetpack(self) -> int | None:
        """The major version; None for a release that is not known here."""
        return JETPACKS.get(int(self.release.partition(".")[0] or 0))


def jetson(root: Path = Path("/")) -> Jetson | None:
    """The board by the files of NVIDIA's Linux for Tegra, at the file system `root`; None on other machines."""
    model = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    tegra = _text(root / "etc/nv_tegra_release")
    if not tegra and not re.search(r"\bJetson\b", model):
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", tegra)
    return Jetson(model or "NVIDIA Jetson", f"{found[1]}.{found[2]}" if found else "", _power_mode(root))


def _power_mode(root: Path) -> str:
    number = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if number is None:
        return ""
    modes = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf"))
    return next((name for mode, name in modes if int(mode) == int(number[1])), f"mode {int(number[1])}")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
