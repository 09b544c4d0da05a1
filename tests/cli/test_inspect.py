from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny_models import write_onnx
from trt_cls.cli import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx")


def test_shows_contract_counts_and_cost(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "Network        resnet 10",
        "Input          3 × 16 × 16, rgb",
        "Parameters     9, as the graph stores them: export folds batch normalization",
        "Multiply-adds  9 an image",
        "Graph input    input_1 float32 [N, 3, 16, 16]",
        "Graph output   predictions float32 [N, 3]",
    ):
        assert line in lines
    assert ["MatMul", "float32", "1", "9", "9"] in [line.split() for line in lines]


def test_layers_are_listed_one_by_one(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--layers"]) == 0
    assert ["MatMul", "float32", "N×3", "9", "9", "logits"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_json_holds_it_all(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["parameters"], content["contract"]["classes"]) == (9, ["red", "green", "blue"])
    assert content["layers"][2] == {
        "name": "logits", "operation": "MatMul", "type": "float32", "shape": ["N", 3], "parameters": 9,
        "multiply_adds": 9,
    }  # fmt: skip


def test_a_missing_file_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "model.onnx")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_onnx_file_needs_neither_torch_nor_a_runtime(model: Path) -> None:
    code = (
        f"import sys; from trt_cls.cli import main; assert main(['inspect', {str(model)!r}]) == 0; "
        "assert not {'torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
