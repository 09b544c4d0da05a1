from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from support.tiny_models import SIZE, write_onnx
from trt_cls.engines import open_engine
from trt_cls.errors import DeviceError, RequestError


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_refused(tmp_path: Path, provider: Any) -> None:
    with pytest.raises(DeviceError, match=f"no provider {provider}, it has cpu; .*onnxruntime-gpu"):
        open_engine(write_onnx(tmp_path / "model.onnx"), provider)


def test_a_silent_fall_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build for CUDA does on a machine without a GPU: the provider is listed, the session comes up without it."""
    path = write_onnx(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession

    def cpu_session(name: str, options: Any, providers: list[str], **others: Any) -> Any:
        return session(name, options, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", cpu_session)
    with pytest.raises(DeviceError, match="could not start its provider cuda and fell back to cpu"):
        open_engine(path, "cuda")
    assert open_engine(path, "auto").backend == "onnxruntime-cpu"


def test_tensorrt_provider_does_not_fit_a_checkpoint_nor_the_cpu_a_plan(tmp_path: Path) -> None:
    for name, provider in (("model.safetensors", "tensorrt"), ("model.engine", "cpu")):
        (tmp_path / name).write_bytes(b"content")
        with pytest.raises(RequestError, match=r"expected (--provider )?auto, c"):
            open_engine(tmp_path / name, provider)  # type: ignore[arg-type]


def test_an_onnx_file_needs_neither_torch_nor_the_classes_of_a_spec(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    code = (
        "import sys, trt_cls\n"
        f"classifier = trt_cls.load({str(path)!r}, 'cpu')\n"
        "import numpy\n"
        f"classifier.predict(numpy.zeros((2, {SIZE}, {SIZE}, 3), numpy.uint8))\n"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx', 'trt_cls.spec.experiment'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
