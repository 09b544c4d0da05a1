from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_cls.doctor.facts import find_out


def test_packages_are_those_that_pip_lists() -> None:
    found = find_out()
    for name in ("numpy", "pillow", "click", "packaging"):
        assert found.packages[name] == importlib.metadata.version(name)


def test_torch_tells_its_cuda_without_being_imported() -> None:
    torch = pytest.importorskip("torch")
    expected = tuple(map(int, torch.version.cuda.split("."))) if torch.version.cuda else None
    assert find_out().torch_cuda == expected


def test_providers_are_those_of_onnxruntime() -> None:
    names = pytest.importorskip("onnxruntime").get_available_providers()
    expected = {name.removesuffix("ExecutionProvider").upper() for name in names} & {"CUDA", "TENSORRT", "OPENVINO"}
    assert set(find_out().providers) == expected


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n", "13.0"),
        ("g++ (Debian 12.2.0-14) 12.2.0\nCopyright\n", "12.2.0"),
    ],
)
def test_compilers_tell_their_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, version: str
) -> None:
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\ncat <<'END'\n{output}END\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_out().tools["nvcc"] == version
    (tmp_path / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    assert "nvcc" not in find_out().tools


def test_a_folder_that_an_uninstall_left_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    code = "from trt_cls.doctor.facts import find_out; print('tensorrt' in find_out().modules)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False\n"
