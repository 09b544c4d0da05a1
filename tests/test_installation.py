"""The extra `gpu` finds a set of packages on every machine that it is for, and a wheel works where nothing else is."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support import tiny_models
from support.spec_texts import spec_text

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


def online(command: Sequence[str | Path], timeout: float = 600) -> str:
    """What a command printed that may ask the index; skips where there is none."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if any(sign in done.stderr for sign in ("Failed to fetch", "error sending request", "dns error")):
        pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def interpreter(version: str) -> str:
    """Python of that version; a shim of pyenv's is on PATH for versions that it does not run."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for program in filter(None, found):
        if subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:
            return str(program)
    pytest.skip(f"Python {version} is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("ziglang", "auditwheel", "twine"):
        if not find_spec(name):
            pytest.skip(f"{name} is not installed: pip install {name}")
    folder = tmp_path_factory.mktemp("dist")
    online([sys.executable, "release/wheels.py", "--processor", "x86_64", "--output", str(folder)])
    (built,) = folder.glob("*.whl")
    return built


COMMANDS = (
    "evaluate -e spec.txt -m model.onnx -r evaluation",
    "infer -m model.onnx -i test/red/0.png -r labels",
    "inspect model.onnx",
    "benchmark model.onnx --images test --seconds 0.2",
    "doctor",
)


def write_model_images_and_spec(folder: Path) -> None:
    pixels = replace(tiny_models.RGB, crop="center", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    tiny_models.write_onnx(folder / "model.onnx", replace(tiny_models.CONTRACT, preprocessing=pixels))
    tiny_models.write_images(folder / "test", 2)
    text = spec_text(
        'arch: "resnet" n_layers: 10 input_image_size: "3,16,16"',
        'preprocess_mode: "torch"',
        'model_path: "model.onnx"',
    )
    (folder / "spec.txt").write_text(text)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the wheel is for x86_64")
@pytest.mark.parametrize("python", ["3.10", "3.13"])
def test_a_wheel_works_without_torch_compiler_and_checkout(wheel: Path, python: str, tmp_path: Path) -> None:
    program = tmp_path / "venv/bin/python"
    online([*uv(), "venv", "--quiet", "--python", interpreter(python), tmp_path / "venv"])
    online([*uv(), "pip", "install", "--quiet", "--python", program, f"{wheel}[cpu]"])
    write_model_images_and_spec(tmp_path)
    alone = {"PATH": str(program.parent), "HOME": str(tmp_path)}

    def run(*words: str) -> str:
        done = subprocess.run([program, *words], cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    for line in COMMANDS:
        run("-m", "trt_cls", *line.split())
    assert json.loads((tmp_path / "evaluation/results.json").read_text())["top_1_accuracy"] == 1.0
    assert ",red," in (tmp_path / "labels/result.csv").read_text()
    facts = "import trt_cls.preprocessing.cpu as cpu, importlib.util as u; print(cpu.executor(), u.find_spec('torch'))"
    assert run("-c", facts).split() == ["native", "None"]
