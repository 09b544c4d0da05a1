"""What runs an INT8 file with `--provider auto` on a CPU: OpenVINO where its answers are those of ONNX Runtime."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import COLORS, CONTRACT, SIZE, write_images, write_onnx
from trt_cls.cli import main
from trt_cls.cli.processes import fastest_engine
from trt_cls.errors import EngineError

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
from trt_cls.engines.openvino import OpenVinoEngine
from trt_cls.export import int8_on_cpu

IMAGES = np.random.default_rng(0).random((32, 3, SIZE, SIZE), np.float32)


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "int8.onnx", replace(CONTRACT, precision="int8"))


def chosen(model: Path, provider: Any = "auto") -> tuple[str, list[str]]:
    """The engine, and what was said of it."""
    said: list[str] = []
    with closing(fastest_engine(model, provider, 1, lambda: IMAGES, said.append)) as engine:
        assert len(engine.infer(IMAGES[:3])) == 3
        return engine.backend, said


def test_openvino_runs_it_where_its_answers_are_the_same(int8: Path) -> None:
    backend, (line,) = chosen(int8)
    assert backend == "openvino-cpu"
    assert line.startswith(
        "INT8 runs on openvino-cpu, which answers here as ONNX Runtime does: top-1 agreement 100.00%"
    )


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (lambda right: right[:, ::-1], "OpenVINO answers otherwise on this processor: top-1 agreement"),
        (lambda right: right * np.nan, "OpenVINO answers otherwise on this processor"),
        (lambda right: 1 / 0, "the run failed"),
    ],
    ids=["other labels", "no numbers", "failure"],
)
def test_onnx_runtime_runs_it_where_they_are_not(
    int8: Path, monkeypatch: pytest.MonkeyPatch, answers: Any, reason: str
) -> None:
    infer = OpenVinoEngine.infer

    def other(engine: Any, images: Any) -> Any:
        try:
            return answers(infer(engine, images))
        except ZeroDivisionError:
            raise EngineError("openvino-cpu: the run failed") from None

    monkeypatch.setattr(OpenVinoEngine, "infer", other)
    backend, (line,) = chosen(int8)
    assert backend == "onnxruntime-cpu"
    assert line.startswith("INT8 runs on onnxruntime-cpu, more slowly than FP32: ")
    assert reason in line


def test_without_openvino_its_package_is_named(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    backend, (line,) = chosen(int8)
    assert backend == "onnxruntime-cpu"
    assert 'pip install "trt-cls[openvino]"' in line


@pytest.mark.parametrize(("precision", "provider"), [("fp32", "auto"), ("fp16", "auto"), ("int8", "cpu")])
def test_other_files_and_named_providers_are_opened_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, provider: str
) -> None:
    monkeypatch.setattr(int8_on_cpu, "open_fastest", None)
    model = write_onnx(tmp_path / "model.onnx", replace(CONTRACT, precision=precision))
    assert chosen(model, provider) == ("onnxruntime-cpu", [])


@pytest.mark.parametrize(("per_class", "backend"), [(11, "openvino-cpu"), (10, None)])
def test_infer_asks_only_for_more_images_than_the_proof_takes(
    int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], per_class: int, backend: str | None
) -> None:
    images = write_images(tmp_path / "images", per_class)
    assert main(["infer", "-m", str(int8), "-i", str(images), "-b", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"INT8 runs on {backend}, " if backend else "")
    assert bool(printed.err) == bool(backend)
    assert len(printed.out.splitlines()) == per_class * len(COLORS)
    assert all(line.split(",")[1] in line.split(",")[0] for line in printed.out.splitlines())


def test_evaluate_keeps_the_exact_engine(int8: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 11)
    assert main(["evaluate", "-m", str(int8), "--dataset", str(images), "-r", str(tmp_path / "r")]) == 0
    assert json.loads((tmp_path / "r" / "results.json").read_text())["backend"] == "onnxruntime-cpu"


def test_benchmark_measures_what_infer_would_run(
    int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 1)
    assert main(["benchmark", str(int8), "--images", str(images), "--stage", "engine", "--seconds", "0"]) == 0
    assert "engine: openvino-cpu, int8" in capsys.readouterr().out
