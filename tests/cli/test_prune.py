"""`trt-cls prune` as it is typed, and the training that follows."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trt_cls.cli import main
from trt_cls.contract import Contract, Preprocessing
from trt_cls.spec.experiment import ModelConfig

pytest.importorskip("torch")

SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,16,16" use_batch_norm: True }}
train_config {{
  train_dataset_path: "{images}" val_dataset_path: "{images}"
  pretrained_model_path: "{model}" preprocess_mode: "torch"
  batch_size_per_gpu: 4 n_epochs: 1 n_workers: 0
  optimizer {{ sgd {{ }} }}
  reg_config {{ type: "L2" weight_decay: 0.0001 }}
  lr_config {{ step {{ learning_rate: 0.01 step_size: 50 gamma: 0.5 }} }}
}}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.reference_weights import fill
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    model = ModelConfig(n_layers=10, input_image_size="3,16,16", use_batch_norm=True)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = Preprocessing(3, 16, 16, "none", "bilinear", "rgb", 255.0, mean, std)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, fill(build(model, 2)), Contract(model, pixels, ("dark", "light")))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main(["prune", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def row(lines: list[str], layer: str) -> list[str]:
    return next(line for line in lines if line.startswith(f"{layer} ")).split(maxsplit=4)


def test_says_what_went_where_and_what_comes_next(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    # `test_latency_is_measured_for_both` measures
    monkeypatch.setattr("trt_cls.pruning.prune.latencies", lambda modules, contract: [0.004, 0.002])
    output = tmp_path / "pruned.safetensors"
    lines = run(capsys, "-m", checkpoint, "-o", output, "-pth", "0.5", "-k", "key")
    assert row(lines, "conv1") == ["conv1", "64", "→", "40"]
    assert row(lines, "predictions") == ["predictions", "2", "→", "2", "computes the logits"]
    assert any(line.startswith("parameters     4,916,930 → 1,8") for line in lines)
    assert any(line.startswith("multiply-adds") and line.endswith("%)") for line in lines)
    assert "latency        4.00 ms → 2.00 ms (2.00×; ONNX Runtime, CPU, one image)" in lines
    assert lines[-2].startswith(f"wrote {output} (")
    assert lines[-1] == f'next: trt-cls train -e SPEC -r DIR --set train_config.pretrained_model_path="{output}"'


def test_taos_flags_are_taken(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--pruning_threshold", 0.6, "--pruning_granularity", 4, "--min_num_filters", 8, "--normalizer", "max"]
    rules += ["--equalization_criterion", "intersection", "--results_dir", tmp_path, "--no-latency"]
    excluded = ["--excluded_layers", "conv1", "block_1a_conv_1", "--output_file", tmp_path / "pruned.safetensors"]
    lines = run(capsys, "--model", checkpoint, *rules, *excluded)
    assert row(lines, "conv1")[3:] == ["64", "excluded"]
    assert row(lines, "block_1a_conv_1")[3:] == ["64", "excluded"]
    assert row(lines, "block_2a_conv_2")[3] == row(lines, "block_2a_conv_shortcut")[3]
    written = json.loads((tmp_path / "pruning.json").read_text())
    assert written["filters"]["conv1"] == [64, 64]
    assert written["threshold"] == 0.6
    assert written["unprunable"]["conv1"] == "excluded"
    assert written["parameters"][1] / written["parameters"][0] == written["pruning_ratio"] < 1


def test_a_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "-m", checkpoint, "-o", tmp_path / "pruned.safetensors", "--dry-run", "--target-flops", 0.5)
    assert not any(line.startswith(("latency", "wrote", "next")) for line in lines)
    share = next(line for line in lines if line.startswith("multiply-adds")).split("(")[1]
    assert 45 < float(share.removesuffix("%)")) <= 50
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_are_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "pruned.safetensors"
    assert main(["prune", "-m", str(checkpoint), "-o", str(output), "-r", str(tmp_path / "file"), "--no-latency"]) == 2
    assert not output.exists()


def test_that_nothing_was_removed_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "-m", checkpoint, "--dry-run", "-pth", "0")[-1]
    assert said.startswith(
        "nothing was removed: too few filters have a norm of at most 0; name a size instead, as --ta"
    )


def test_without_onnx_runtime_the_latency_is_left_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["prune", "-m", str(checkpoint), "-o", str(tmp_path / "a.safetensors")]) == 0
    output = capsys.readouterr()
    assert 'pip install "trt-cls[cpu]"' in output.err
    assert "latency" not in output.out
    assert main(["prune", "-m", str(checkpoint), "-o", str(tmp_path / "b.safetensors"), "--latency"]) == 1
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "-o FILE"),
        (["--dry-run", "-pth", "0.5", "--target-flops", "0.5"], "leave one of them out"),
        (["--dry-run", "conv1"], '"conv1" belongs to no flag'),
        (["--dry-run", "-el", "conv1,conv9"], '-el "conv9": the network has no such layer'),
        (["--dry-run", "-eq", "mean"], "arithmetic_mean"),
        (["--dry-run", "-n", "L1"], "L2"),
        (["--dry-run", "-pg", "0"], "-pg"),
        (["--dry-run", "-nf", "0"], "-nf"),
        (["--dry-run", "-pth", "-1"], "-pth -1"),
        (["--dry-run", "--target-flops", "2"], "--target-flops 2"),
        (["-o", "pruned.hdf5"], "use -o pruned.safetensors"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    checkpoint: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", "-m", str(checkpoint), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.fixture
def spec(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A spec whose pretrained model is a pruned one."""
    for name, level in (("dark", 60), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((16, 16, 3), level + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    run(capsys, "-m", checkpoint, "-o", tmp_path / "pruned.safetensors", "-pth", "0.8", "--no-latency")
    path = tmp_path / "spec.txt"
    path.write_text(SPEC.format(images=tmp_path / "images", model=tmp_path / "pruned.safetensors"))
    return path


def test_a_pruned_network_learns_on_evaluates_and_exports_as_narrow(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from safetensors import safe_open

    results, images = tmp_path / "results", tmp_path / "images"
    assert main(["train", "-e", str(spec), "-r", str(results), "--device", "cpu"]) == 0
    assert re.search(r"^  \d+ layers are as narrow as in the file, which was pruned$", capsys.readouterr().err, re.M)
    trained = results / "weights" / "best.safetensors"
    with safe_open(tmp_path / "pruned.safetensors", "np") as before, safe_open(trained, "np") as after:
        assert before.get_tensor("conv1.weight").shape == after.get_tensor("conv1.weight").shape == (16, 3, 7, 7)
    onnx = tmp_path / "model.onnx"
    assert main(["export", "-m", str(trained), "-o", str(onnx), "--fp16", "--builder", "none"]) == 0
    assert main(["compare", str(trained), str(onnx), "--images", str(images), "--min-agreement", "1"]) == 0
    assert main(["infer", "-m", str(onnx), "-i", str(images / "dark" / "0.png")]) == 0


def test_an_interrupted_retraining_goes_on(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    arguments = ["train", "-e", str(spec), "-r", str(tmp_path / "results"), "--device", "cpu"]
    monkeypatch.setattr("trt_cls.training.logs.console.Reporter.step_done", interrupt)
    assert main(arguments) == 130
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0, capsys.readouterr().err
