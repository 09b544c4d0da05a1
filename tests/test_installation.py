"""`pip install "trt-cls[gpu]"` finds a set of packages on every machine that it is for; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parents[1]
SERVER, JETPACK_6, JETPACK_7 = "x86_64-manylinux_2_28", "aarch64-manylinux_2_35", "aarch64-manylinux_2_39"
"""The glibc of a JetPack is that of its Ubuntu, 22.04 and 24.04."""


def uv() -> list[str]:
    if program := shutil.which("uv"):
        return [program]
    if find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    pytest.skip("uv is not installed; pip evaluates markers for the Python that it runs in")


def resolved(platform: str, python: str) -> set[str]:
    """The packages of the extra `gpu`."""
    command = [*uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", "gpu"]
    target = ["--python-platform", platform, "--python-version", python]
    done = subprocess.run([*command, *target, "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if any(sign in done.stderr for sign in ("Failed to fetch", "error sending request", "dns error")):
        pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stderr
    return {line.partition("==")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    ("machine", "python", "expected"),
    [
        ("x86_64", "3.10", {"onnxruntime-gpu", "tensorrt", "nvidia-cuda-nvrtc"}),
        ("aarch64", "3.10", {"onnxruntime"}),
        ("aarch64", "3.12", {"onnxruntime-gpu"}),
    ],
)
def test_the_markers_name_one_onnx_runtime_and_leave_tensorrt_to_jetpack(
    machine: str, python: str, expected: set[str]
) -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    here = {"platform_machine": machine, "python_version": python}
    wanted = [Requirement(text) for text in extra]
    found = {each.name for each in wanted if each.marker is None or each.marker.evaluate(here)}
    assert found == {"pycuda", "cuda-pathfinder"} | expected


def test_the_programs_are_functions_of_the_package() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"trt-cls", "classification_tf1"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_server_gets_everything_from_the_index(python: str) -> None:
    found = resolved(SERVER, python)
    assert {"onnxruntime-gpu", "tensorrt", "pycuda", "nvidia-cuda-nvrtc"} <= found
    assert "onnxruntime" not in found, "both own the module onnxruntime"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "python", "runtime"), [(JETPACK_6, "3.10", "onnxruntime"), (JETPACK_7, "3.12", "onnxruntime-gpu")]
)
def test_a_jetson_keeps_the_tensorrt_and_nvrtc_of_jetpack(platform: str, python: str, runtime: str) -> None:
    found = resolved(platform, python)
    assert {"pycuda", runtime} <= found
    assert len(found & {"onnxruntime", "onnxruntime-gpu"}) == 1
    assert not [name for name in found if name.startswith(("tensorrt", "nvidia-cuda-nvrtc"))]
