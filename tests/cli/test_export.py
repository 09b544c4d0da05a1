from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.tiny_models import write_onnx
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import Profile, read_sidecar
from trt_cls.cli import main
from trt_cls.contract import Contract, Preprocessing
from trt_cls.spec.experiment import ModelConfig

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="1,16,16", use_batch_norm=True)
    pixels = Preprocessing(1, 16, 16, "none", "bilinear", "gray", divisor=255.0, mean=(0.449,), std=(0.226,))
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, build(model, 2), Contract(model, pixels, ("no", "yes")))
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    output = checkpoint.with_name("model.onnx")
    assert main(["export", "-m", str(checkpoint), "-o", str(output), "--builder", "none"]) == 0
    return output


@pytest.fixture
def nothing_to_build_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


def test_says_what_was_written_and_how_far_it_is_off(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    output = tmp_path / "half.onnx"
    assert main(["export", "-m", str(exported), "-o", str(output), "--fp16", "--builder", "none", "-k", "key"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"wrote {output} (fp16, ")
    assert "agreement 100.00%" in lines[1]
    assert "64 random images" in lines[1]
    assert lines[-1] == f"next: trt-cls evaluate -m {output} --dataset FOLDER"


def test_a_file_without_parity_is_not_blamed_on_onnx_runtime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = write_onnx(tmp_path / "model.onnx"), tmp_path / "copy.onnx"
    assert main(["export", "-m", str(model), "-o", str(output), "--builder", "none"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"parity not checked, {model} records none: export it again from its .safetensors checkpoint"


def test_flags_of_tao_reach_the_engine(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "deep" / "model.engine"
    flags = ["--data_type", "fp16", "--engine_file", str(engine), "--min_batch_size", "2", "--max_batch_size", "4"]
    output = tmp_path / "model.onnx"
    assert main(["export", "-m", str(exported), "-o", str(output), *flags, "--builder", "tensorrt-rtx"]) == 0
    assert read_sidecar(engine).profile == Profile(2, 4, 4)
    assert read_contract(engine).precision == "fp16"


@pytest.mark.usefixtures("nothing_to_build_with")
def test_without_a_builder_the_last_lines_say_how_to_get_an_engine(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.onnx"
    assert main(["export", "-m", str(exported), "-o", str(output)]) == 0
    *_, why, command = capsys.readouterr().out.splitlines()
    assert 'pip install "trt-cls[rtx]"' in why
    assert command.endswith(f"--engine {tmp_path / 'model.engine'}")


@pytest.mark.usefixtures("nothing_to_build_with")
def test_an_engine_that_can_not_be_built_fails_the_run(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--engine", str(tmp_path / "model.engine")]
    assert main(["export", "-m", str(exported), "-o", str(tmp_path / "model.onnx"), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "trt-cls[rtx]" in line
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime_the_last_line_says_how_to_check(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = tmp_path / "model.onnx"
    assert main(["export", "-m", str(checkpoint), "-o", str(output), "--builder", "none"]) == 0
    assert 'pip install "trt-cls[cpu]"' in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fp16", "--data_type", "fp32"], "contradict"),
        (["--set", "eval_config.top_k=1"], "-e"),
        (["--min-batch", "4", "--max-batch", "2"], "1 ≤ min ≤ opt ≤ max"),
        (["--max-batch", "0"], "--max-batch"),
        (["--int8"], "--int8"),
        (["--builder", "openvino"], "tensorrt-rtx"),
        (["-e", "missing.txt"], "missing.txt"),
        (["--images", "missing"], "missing"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    exported: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "-m", str(exported), "-o", str(tmp_path / "model.onnx"), "--builder", "none"]
    assert main([*given, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []
