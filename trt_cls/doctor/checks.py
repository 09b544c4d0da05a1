"""Checks of the facts of a machine: what works, what is absent, what is broken, and how to install or fix it.

Does not know: how facts are collected and findings printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.utils import canonicalize_name

from trt_cls.doctor.facts import Facts
from trt_cls.engines.backends import BACKENDS, Backend

Status = Literal["ok", "absent", "broken"]
OLDEST_PYTHON = (3, 10)
OLDEST_JETPACK = 6
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
OPTIONAL = (
    ("timm", ("timm",), "networks of timm", "timm"),
    ("TensorBoard", ("tensorboard",), "curves of a training", "train"),
    ("W&B", ("wandb",), "train --logger wandb", "wandb"),
    ("MLflow", ("mlflow",), "train --logger mlflow", "mlflow"),
    ("OpenCV", OPENCVS, "videos and cameras in infer", "video"),
)
"""Name, the packages of which one is enough, what it is for, and the extra that installs it."""
PRODUCT = "trt-cls"


@dataclass(frozen=True)
class Finding:
    """One part of the machine."""

    name: str
    state: Status
    """"absent" is not an error: nothing that is installed needs it."""
    found: str
    fix: str = ""
    """How to fix or install it, usually a command; empty if nothing is to be done."""


def findings(facts: Facts) -> tuple[Finding, ...]:
    """A finding for each part of the machine."""
    return (
        _python(facts),
        *_jetson(facts),
        _driver(facts),
        *(finding for backend in BACKENDS for finding in _backend(backend, facts)),
        _images(facts),
        _nvrtc(facts),
        _tool(facts, "g++", "apt-get install g++"),
        *(_optional(facts, *row) for row in OPTIONAL),
        *_requirements(facts),
    )


def _python(facts: Facts) -> Finding:
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    found = f"{facts.python}, {facts.machine}"
    if version < OLDEST_PYTHON:
        return Finding("Python", "broken", found, "install Python 3.10 or newer")
    return Finding("Python", "ok", found)


def _jetson(facts: Facts) -> Iterator[Finding]:
    board = facts.jetson
    if board is None:
        return
    system = f"JetPack {board.jetpack}, Linux for Tegra {board.release}" if board.jetpack else board.release
    mode = f"power mode {board.power_mode}" if board.power_mode else ""
    found = ", ".join(filter(None, (board.model, system, mode)))
    if board.jetpack and board.jetpack < OLDEST_JETPACK:
        yield Finding("Jetson", "broken", found, f"flash JetPack {OLDEST_JETPACK} or newer, which has Python 3.10")
    else:
        slower = board.power_mode and not board.power_mode.startswith("MAXN")
        yield Finding(
            "Jetson", "ok", found, "for full speed: sudo nvpmodel -m 0 && sudo jetson_clocks" if slower else ""
        )


def _driver(facts: Facts) -> Finding:
    if facts.driver_cuda is None:
        if facts.has_nvidia_device:
            return Finding(
                "GPU", "broken", "an NVIDIA driver without its library libcuda.so.1",
                "in a container: start it with --gpus all; elsewhere: install the driver's libcuda1",
            )  # fmt: skip
        return Finding("GPU", "absent", "no NVIDIA driver", "on a machine with an NVIDIA GPU: install its driver")
    cuda = f"driver for CUDA {_dotted(facts.driver_cuda)}"
    if facts.gpu is None:
        return Finding("GPU", "absent", f"{cuda}, no GPU visible", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return Finding("GPU", "ok", f"{facts.gpu.name}, compute capability {facts.gpu.compute_capability}, {cuda}")


def _backend(backend: Backend, facts: Facts) -> list[Finding]:
    """Its own checks, where it has some below."""
    if backend.name in CHECKS:
        return [check(facts) for check in CHECKS[backend.name]]
    installed = [f"{name} {facts.packages[name]}" for name in backend.packages if name in facts.packages]
    if installed:
        return [Finding(backend.name, "ok", ", ".join(installed))]
    fix = f'pip install "{PRODUCT}[{backend.extra}]"; it runs {backend.purpose}'
    return [Finding(backend.name, "absent", "not installed", fix)]


def _onnxruntime(facts: Facts) -> Finding:
    installed = [f"{name} {facts.packages[name]}" for name in ONNX_RUNTIMES if name in facts.packages]
    name, found = "ONNX Runtime", ", ".join(installed)
    wanted = "gpu" if facts.gpu else "cpu"
    if len(installed) > 1:
        fix = f'pip uninstall -y {" ".join(ONNX_RUNTIMES)}; pip install "{PRODUCT}[{wanted}]"'
        return Finding(name, "broken", f"{found}: both install the module onnxruntime, one overwrote the other", fix)
    if not installed:
        return Finding(name, "absent", "not installed", f'pip install "{PRODUCT}[{wanted}]"')
    if "onnxruntime" not in facts.modules:
        fix = f"pip install --force-reinstall {installed[0].split()[0]}"
        return Finding(name, "broken", f"{found}, but its module is missing", fix)
    if facts.gpu and "onnxruntime" in facts.packages and not _without_gpu_runtime(facts):
        fix = f'for the GPU: pip uninstall -y onnxruntime; pip install "{PRODUCT}[gpu]"'
        return Finding(name, "ok", f"{found}, provider CPU alone", fix)
    return Finding(name, "ok", f"{found}, providers {', '.join((*facts.providers, 'CPU'))}")


def _without_gpu_runtime(facts: Facts) -> bool:
    """There is no onnxruntime-gpu for this machine, and the extra `gpu` takes the one for the CPU."""
    return facts.jetson is not None and facts.python.startswith("3.10.")


def _tensorrt(facts: Facts) -> Finding:
    parts = {name: v for name, v in facts.packages.items() if name.startswith("tensorrt") and "-rtx" not in name}
    found = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    cudas = sorted({int(piece[2:]) for name in parts for piece in name.split("-") if piece in ("cu11", "cu12", "cu13")})
    major = facts.driver_cuda[0] if facts.driver_cuda else max(cudas, default=13)
    again = f"pip uninstall -y {' '.join(sorted(parts))}; pip install tensorrt-cu{major}"
    if len(cudas) > 1 or len(set(parts.values())) > 1:
        return Finding("TensorRT", "broken", f"{found}: parts of different versions", again)
    if cudas and facts.driver_cuda and cudas[0] > facts.driver_cuda[0]:
        newest = _dotted(facts.driver_cuda)
        return Finding("TensorRT", "broken", f"{found}, but the driver runs CUDA up to {newest}", again)
    if "tensorrt" in facts.modules:
        return Finding("TensorRT", "ok", found or "installed by the system, as on JetPack")
    if parts:
        return Finding("TensorRT", "broken", f"{found}, but its module is missing", again)
    if facts.jetson:
        fix = "sudo apt-get install nvidia-jetpack python3-libnvinfer, in an environment with --system-site-packages"
    else:
        fix = f'pip install "{PRODUCT}[gpu]"' if facts.gpu else "needs a GPU first"
    return Finding("TensorRT", "absent", "not installed", fix)


def _tensorrt_rtx(facts: Facts) -> Finding:
    name = "TensorRT-RTX"
    version = facts.packages.get("tensorrt-rtx-cu13") or facts.packages.get("tensorrt-rtx-cu12")
    if version is None:
        return Finding(
            name, "absent", "not installed", f'pip install "{PRODUCT}[rtx]"; it builds engines without a GPU'
        )
    if "tensorrt_rtx" not in facts.modules:
        fix = f'pip install --force-reinstall "{PRODUCT}[rtx]"'
        return Finding(name, "broken", f"{version}, but its module is missing", fix)
    return Finding(name, "ok", f"{version}, builds engines{'' if facts.gpu else '; running them takes a GPU'}")


def _pycuda(facts: Facts) -> Finding:
    if version := facts.packages.get("pycuda"):
        return Finding("pycuda", "ok", version)
    if facts.gpu is None:
        return Finding("pycuda", "absent", "not installed", "needs a GPU first")
    first = "" if "nvcc" in facts.tools else "install the CUDA Toolkit, then "
    return Finding(
        "pycuda", "absent", "not installed: no engine runs without it",
        f'{first}CUDA_ROOT=/usr/local/cuda PATH=/usr/local/cuda/bin:$PATH pip install numpy "pycuda>=2025.1"',
    )  # fmt: skip


def _nvrtc(facts: Facts) -> Finding:
    if facts.nvrtc:
        return Finding("NVRTC", "ok", f"{facts.nvrtc}, compiles the kernels at first use")
    fix = "sudo apt-get install nvidia-jetpack" if facts.jetson else "pip install nvidia-cuda-nvrtc"
    return Finding("NVRTC", "absent", "not found: no preprocessing on a GPU", fix)


def _torch(facts: Facts) -> Finding:
    version = facts.packages.get("torch")
    if version is None:
        return Finding("torch", "absent", "not installed: no training or export", f'pip install "{PRODUCT}[train]"')
    found = f"{version} for {f'CUDA {_dotted(facts.torch_cuda)}' if facts.torch_cuda else 'the CPU'}"
    vision = facts.packages.get("torchvision", version)
    if ("+cpu" in version) != ("+cpu" in vision):
        fix = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        return Finding("torch", "broken", f"{found}, but torchvision {vision} is another build", fix)
    if facts.torch_cuda and facts.driver_cuda and facts.torch_cuda[0] > facts.driver_cuda[0]:
        fix = (
            "update the NVIDIA driver, or: pip install --force-reinstall torch torchvision "
            f"--index-url https://download.pytorch.org/whl/cu{facts.driver_cuda[0]}{facts.driver_cuda[1]}"
        )
        return Finding("torch", "broken", f"{found}, but the driver runs CUDA up to {_dotted(facts.driver_cuda)}", fix)
    if facts.gpu and facts.torch_cuda is None:
        fix = "for the GPU: pip install --force-reinstall torch torchvision"
        return Finding("torch", "ok", found, fix)
    return Finding("torch", "ok", found)


CHECKS: dict[str, tuple[Callable[[Facts], Finding], ...]] = {
    "ONNX Runtime": (_onnxruntime,),
    "TensorRT": (_tensorrt, _tensorrt_rtx, _pycuda),
    "torch": (_torch,),
}
"""Backend → what is checked of it beyond its presence."""


def _images(facts: Facts) -> Finding:
    """Without simplejpeg or the C++ library, images take longer; their pixels are the same."""
    resize = "resized by the C++ library" if facts.has_native_library else "resized by Pillow"
    decode = "decoded by simplejpeg" if "simplejpeg" in facts.packages else "decoded by Pillow"
    fixes = []
    if not facts.has_native_library:
        fixes.append("install g++ and trt-cls again: six times as fast")
    if "simplejpeg" not in facts.packages:
        fixes.append("pip install simplejpeg")
    return Finding("images", "absent" if fixes else "ok", f"{decode}, {resize}", "; ".join(fixes))


def _tool(facts: Facts, name: str, fix: str) -> Finding:
    if name in facts.tools:
        return Finding(name, "ok", facts.tools[name])
    return Finding(name, "absent", "not on the PATH: pycuda can't be built here", fix)


def _optional(facts: Facts, name: str, packages: Sequence[str], purpose: str, extra: str) -> Finding:
    installed = [package for package in packages if package in facts.packages]
    install = f'pip install "{PRODUCT}[{extra}]"'
    if not installed:
        return Finding(name, "absent", f"not installed: needed for {purpose}", install)
    if len(installed) > 1:
        found = f"{', '.join(installed)}: all of them install the same module"
        return Finding(name, "broken", found, f"pip uninstall -y {' '.join(installed)}; {install}")
    return Finding(name, "ok", f"{facts.packages[installed[0]]}, for {purpose}")


def _requirements(facts: Facts) -> Iterator[Finding]:
    """Requirements of trt-cls, and of the packages that it requires, that are not met."""
    seen: set[str] = set()
    waiting = [PRODUCT]
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        for requirement in facts.requirements.get(package, ()):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if not needed and package != PRODUCT:  # extras of trt-cls are checked if installed
                continue
            name = canonicalize_name(requirement.name)
            waiting.append(name)
            version = facts.packages.get(name)
            wanted = f"{requirement.name}{requirement.specifier}"
            if version is None and needed:
                yield Finding(
                    package, "broken", f"requires {wanted}, which is not installed", f'pip install "{wanted}"'
                )
            elif version is not None and not requirement.specifier.contains(version, prereleases=True):
                yield Finding(package, "broken", f"requires {wanted}, found {version}", f'pip install "{wanted}"')


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
