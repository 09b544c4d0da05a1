from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from trt_cls.doctor.checks import CHECKS, OPTIONAL, Finding, findings
from trt_cls.doctor.facts import Facts, Jetson
from trt_cls.engines.backends import BACKENDS
from trt_cls.gpu import Gpu

ROOT = Path(__file__).parents[2]

CPU = Facts(
    python="3.11.7",
    machine="Linux x86_64",
    packages={"trt-cls": "1.0", "onnxruntime": "1.31.1", "torch": "2.14.1", "torchvision": "0.29.1", "numpy": "2.4.6"},
    requirements={"trt-cls": (Requirement("numpy>=1.26"), Requirement('onnxruntime>=1.20; extra == "cpu"'))},
    modules=frozenset({"onnxruntime"}),
    providers=(),
    has_nvidia_device=False,
    driver_cuda=None,
    gpu=None,
    torch_cuda=(13, 0),
    nvrtc=None,
    tools={"g++": "12.2.0"},
    has_native_library=False,
)
PLAIN = [backend for backend in BACKENDS if backend.name not in CHECKS]
"""Backends of which only the presence is checked."""
TENSORRT = {"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0", "tensorrt-cu13-libs": "11.4.0"}
GPU = replace(
    CPU,
    packages={
        **CPU.packages, **TENSORRT, "onnxruntime-gpu": "1.31.1", "pycuda": "2026.1", "tensorrt-rtx-cu13": "1.7.1.116",
        **{backend.packages[0]: "1.0" for backend in PLAIN}, "simplejpeg": "1.9.0", "timm": "1.0.22",
        "tensorboard": "2.20.0", "wandb": "0.22.0", "mlflow": "3.5.0", "opencv-python-headless": "4.12.0",
    },
    modules=frozenset({"onnxruntime", "tensorrt", "tensorrt_rtx"}),
    providers=("CUDA", "TENSORRT"),
    has_nvidia_device=True,
    driver_cuda=(13, 0),
    gpu=Gpu("NVIDIA L4", "8.9"),
    nvrtc="13.0",
    tools={"g++": "12.2.0", "nvcc": "13.0"},
    has_native_library=True,
)  # fmt: skip
del GPU.packages["onnxruntime"]  # type: ignore[attr-defined]


def but(facts: Facts, *without: str, **versions: str) -> Facts:
    """`facts` with other packages; _ stands for -."""
    packages = {name: version for name, version in facts.packages.items() if name not in without}
    return replace(facts, packages=packages | {name.replace("_", "-"): version for name, version in versions.items()})


def of(facts: Facts, name: str) -> Finding:
    return next(finding for finding in findings(facts) if finding.name == name)


def test_a_complete_machine_has_nothing_to_fix() -> None:
    assert {finding.state for finding in findings(GPU)} == {"ok"}
    assert not any(finding.fix for finding in findings(GPU))
    assert of(GPU, "GPU").found == "NVIDIA L4, compute capability 8.9, driver for CUDA 13.0"
    assert of(GPU, "ONNX Runtime").found == "onnxruntime-gpu 1.31.1, providers CUDA, TENSORRT, CPU"


def test_a_machine_without_gpu_lacks_things_but_is_not_broken() -> None:
    found = {finding.name: finding.state for finding in findings(CPU)}
    assert set(found.values()) == {"ok", "absent"}
    assert {name for name, state in found.items() if state == "absent"} == {
        "GPU", "TensorRT", "TensorRT-RTX", "pycuda", "images", "NVRTC", *(backend.name for backend in PLAIN),
        *(row[0] for row in OPTIONAL),
    }  # fmt: skip
    assert all(finding.fix for finding in findings(CPU) if finding.state == "absent")


@pytest.mark.parametrize(
    ("facts", "name", "found", "fix"),
    [
        (replace(CPU, python="3.9.18"), "Python", "3.9.18", "Python 3.10"),
        (replace(CPU, has_nvidia_device=True), "GPU", "libcuda.so.1", "--gpus all"),
        (
            but(CPU, onnxruntime_gpu="1.31.1"),
            "ONNX Runtime",
            "both install",
            'pip uninstall -y onnxruntime onnxruntime-gpu; pip install "trt-cls[cpu]"',
        ),
        (but(GPU, onnxruntime="1.31.1"), "ONNX Runtime", "both install", 'pip install "trt-cls[gpu]"'),
        (replace(CPU, modules=frozenset()), "ONNX Runtime", "module is missing", "--force-reinstall onnxruntime"),
        (but(GPU, tensorrt_cu12_libs="11.4.0"), "TensorRT", "parts of different", "pip install tensorrt-cu13"),
        (but(GPU, tensorrt_cu13_libs="11.3.0"), "TensorRT", "parts of different", "pip uninstall -y tensorrt "),
        (replace(GPU, driver_cuda=(12, 8)), "TensorRT", "CUDA up to 12.8", "pip install tensorrt-cu12"),
        (replace(GPU, modules=frozenset({"onnxruntime"})), "TensorRT", "module is missing", "tensorrt-cu13"),
        (replace(GPU, modules=frozenset({"onnxruntime"})), "TensorRT-RTX", "module is missing", "trt-cls[rtx]"),
        (replace(GPU, driver_cuda=(12, 8)), "torch", "CUDA up to 12.8", "/whl/cu128"),
        (but(CPU, torch="2.14.1+cpu"), "torch", "torchvision 0.29.1 is another build", "/whl/cpu"),
        (
            but(CPU, **{"opencv_python": "5.0", "opencv_python_headless": "5.0"}),
            "OpenCV",
            "all of them install the same module",
            "pip uninstall -y opencv-python opencv-python-headless",
        ),
        (but(CPU, numpy="1.20"), "trt-cls", "requires numpy>=1.26, found 1.20", 'pip install "numpy>=1.26"'),
        (but(CPU, "numpy"), "trt-cls", "requires numpy>=1.26, which is not", 'pip install "numpy>=1.26"'),
        (but(CPU, onnxruntime="1.9"), "trt-cls", "requires onnxruntime>=1.20, found 1.9", "onnxruntime>=1.20"),
    ],
)
def test_what_does_not_fit_is_broken_and_has_a_fix(facts: Facts, name: str, found: str, fix: str) -> None:
    finding = of(facts, name)
    assert finding.state == "broken"
    assert found in finding.found
    assert fix in finding.fix


def test_requirements_are_followed_from_package_to_package() -> None:
    requirements: dict[str, Any] = {
        **CPU.requirements,
        "onnxruntime": (Requirement("protobuf<7"), Requirement('sympy; extra == "dev"')),
        "unrelated": (Requirement("numpy<1"),),
    }
    found = findings(replace(but(CPU, protobuf="7.35", unrelated="1"), requirements=requirements))
    assert [(finding.name, finding.found) for finding in found if finding.state == "broken"] == [
        ("onnxruntime", "requires protobuf<7, found 7.35")
    ]


def test_a_gpu_without_its_packages_tells_how_to_use_it() -> None:
    idle = replace(CPU, driver_cuda=(13, 0), gpu=GPU.gpu, has_nvidia_device=True, torch_cuda=None)
    assert 'pip install "trt-cls[gpu]"' in of(idle, "ONNX Runtime").fix
    assert 'pip install "trt-cls[gpu]"' in of(idle, "TensorRT").fix
    assert of(idle, "pycuda").fix.startswith("install the CUDA Toolkit, then CUDA_ROOT=")
    assert "torchvision" in of(idle, "torch").fix


def test_jetpacks_tensorrt_needs_no_package() -> None:
    jetson = replace(GPU, packages={"trt-cls": "1.0"}, requirements={}, modules=frozenset({"tensorrt"}))
    assert of(jetson, "TensorRT").state == "ok"
    assert "JetPack" in of(jetson, "TensorRT").found


@pytest.mark.parametrize(("name", "packages", "purpose", "extra"), OPTIONAL)
def test_an_absent_optional_package_is_named_with_the_extra_that_installs_it(
    name: str, packages: tuple[str, ...], purpose: str, extra: str
) -> None:
    finding = of(CPU, name)
    assert (finding.state, finding.fix) == ("absent", f'pip install "trt-cls[{extra}]"')
    assert purpose in finding.found
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(packages) & {Requirement(text).name for text in project["optional-dependencies"][extra]}


ORIN = Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "MAXN")
ON_ORIN = replace(
    GPU,
    python="3.10.12",
    packages={"trt-cls": "1.0", "onnxruntime": "1.23.2", "pycuda": "2026.1"},
    requirements={},
    gpu=Gpu("Orin", "8.7"),
    jetson=ORIN,
)


def test_a_jetson_is_named_with_its_jetpack_and_power_mode() -> None:
    assert of(ON_ORIN, "Jetson").found == (
        "NVIDIA Jetson AGX Orin Developer Kit, JetPack 6, Linux for Tegra 36.4.3, power mode MAXN"
    )
    assert of(ON_ORIN, "ONNX Runtime").fix == "", "there is no onnxruntime-gpu for it"
    assert "nvpmodel -m 0" in of(replace(ON_ORIN, jetson=replace(ORIN, power_mode="15W")), "Jetson").fix
    assert "Jetson" not in {finding.name for finding in findings(GPU)}


def test_a_jetson_is_sent_to_jetpack_for_what_the_index_has_not() -> None:
    bare = replace(ON_ORIN, modules=frozenset({"onnxruntime"}), nvrtc=None)
    assert "python3-libnvinfer" in of(bare, "TensorRT").fix
    assert "--system-site-packages" in of(bare, "TensorRT").fix
    assert "nvidia-jetpack" in of(bare, "NVRTC").fix


def test_a_jetpack_without_a_python_that_is_new_enough_is_broken() -> None:
    old = of(replace(ON_ORIN, jetson=replace(ORIN, release="35.6.0")), "Jetson")
    assert old.state == "broken"
    assert "JetPack 6" in old.fix
