from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from support.tiny_models import CONTRACT, RGB, SIZE, probabilities, write_onnx
from trt_cls.engines import open_engine
from trt_cls.errors import ArtefactError, DeviceError, EngineError, RequestError


def batch(*colors: tuple[int, int, int]) -> Any:
    images = np.empty((len(colors), 3, SIZE, SIZE), np.float32)
    images[:] = np.array(colors, np.float32)[:, :, None, None] / 255
    return images


@pytest.mark.parametrize("provider", ["auto", "cpu"])
@pytest.mark.parametrize("threads", [None, 1])
def test_onnx_gives_probabilities(tmp_path: Path, provider: Any, threads: int | None) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider, threads)
    colors = [(255, 0, 0), (0, 200, 100), (0, 0, 9)]
    answers = engine.infer(batch(*colors))
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, [probabilities(color) for color in colors], atol=1e-6)
    assert engine.backend == "onnxruntime-cpu"
    assert engine.contract == CONTRACT
    engine.close()


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_a_closed_engine_says_so_and_closes_twice(tmp_path: Path, provider: Any) -> None:
    pytest.importorskip("onnxruntime" if provider == "cpu" else "openvino")
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider, 1)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=f"{engine.backend}: the engine is closed; open it again"):
        engine.infer(batch((1, 2, 3)))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, SIZE, SIZE + 1), np.float32),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((3, SIZE, SIZE), np.float32),
        np.zeros((0, 3, SIZE, SIZE), np.float32),
        np.zeros((1, 3, SIZE, SIZE), np.float64),
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, images: Any) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), "cpu")
    with pytest.raises(EngineError, match=r"expected float32 \['n', 3, 16, 16\]"):
        engine.infer(images)


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


def test_a_graph_that_belies_its_contract_is_refused(tmp_path: Path) -> None:
    larger = replace(CONTRACT, preprocessing=replace(RGB, height=24))
    with pytest.raises(ArtefactError, match=r"\[3, 16, 16\].*expected .*\[3, 24, 16\].*"):
        open_engine(write_onnx(tmp_path / "model.onnx", larger), "cpu")


def test_a_graph_that_can_not_be_loaded_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"GlobalAveragePool", b"GlobalAveragePoul"))
    with pytest.raises(ArtefactError, match=r"model.onnx: ONNX Runtime .* can't load it") as caught:
        open_engine(path, "cpu")
    assert "\n" not in str(caught.value)


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
