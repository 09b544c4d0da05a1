"""`trt-cls train` as it is typed: exit status, one line of error, the command that comes next."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trt_cls.cli import main
from trt_cls.isolation import MAIN_CODE

SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,16,16" use_batch_norm: True }}
train_config {{
  train_dataset_path: "{images}" val_dataset_path: "{images}"
  batch_size_per_gpu: 4 n_epochs: 2 n_workers: 0
  optimizer {{ sgd {{ }} }}
  reg_config {{ type: "L2" weight_decay: 0.0001 }}
  lr_config {{ step {{ learning_rate: 0.01 step_size: 50 gamma: 0.5 }} }}
}}
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    for name, level in (("dark", 60), ("light", 200)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((16, 16, 3), level + number, np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
    path = root / "spec.txt"
    path.write_text(SPEC.format(images=root / "images"))
    return path


def test_names_what_was_made_and_the_next_command(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec), "-r", str(tmp_path), "--device", "cpu", "-k", "key"]) == 0
    output = capsys.readouterr()
    assert f"trt-cls export -m {tmp_path}/weights/best.safetensors" in output.out
    assert "done: 2 epochs, 0 broken images" in output.out
    assert output.err.count("epoch ") == 2
    assert "seed 42" in output.err
    assert "fp32" in output.err


def test_tao_s_long_flags_and_set_are_taken(spec: Path, tmp_path: Path) -> None:
    arguments = ["train", "--experiment_spec_file", str(spec), "--results_dir", str(tmp_path), "--device", "cpu"]
    arguments += ["--init_epoch", "1", "--gpus", "1", "--set", "train_config.n_epochs=1"]
    assert main(arguments) == 0
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 2


def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("trt_cls.training.logs.console.Reporter.step_done", interrupt)
    assert main(["train", "-e", str(spec), "-r", str(tmp_path), "--device", "cpu"]) == 130
    monkeypatch.undo()
    error = capsys.readouterr().err.splitlines()[-1]
    command = error.split("go on with: ")[1].split()
    assert command[:2] == ["trt-cls", "train"]
    assert json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"
    assert main([*command[1:], "--device", "cpu"]) == 0
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2", "--device", "cpu"], "torchrun --nproc-per-node 2 -m trt_cls train"),
        (["--save-every", "0"], "--save-every"),
        (["--precision", "tf32", "--device", "cpu"], "error: --precision tf32: not on a CPU"),
        (["--resume"], "nothing to resume"),
        (["--precision", "fp16", "--device", "cpu"], "error: --precision fp16: not on a CPU"),
        (["-c", "missing.json"], "missing.json"),
        (["--set", "train_config.n_epochs=0"], "train_config.n_epochs"),
    ],
)
def test_a_wrong_request_ends_with_2_and_one_line(
    arguments: list[str], message: str, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec), "-r", str(tmp_path), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_more_gpus_than_there_are_end_with_1_and_one_line(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec), "-r", str(tmp_path), "--gpus", "64"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --gpus 64: torch finds ")


def test_gpus_starts_the_same_call_once_for_each(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, list[str]]] = []
    monkeypatch.setattr("trt_cls.distributed.launch.require_gpus", lambda count, otherwise: None)
    monkeypatch.setattr("trt_cls.distributed.launch.run_in_processes", lambda *call: calls.append(call) or 0)
    typed = ["-e", str(spec), "-r", str(tmp_path), "--gpus", "2", "--save-every", "5", "--resume", "-k", "key"]
    with pytest.raises(SystemExit) as ending:
        main(["train", *typed, "--set", "train_config.n_epochs=1", "--set", "train_config.random_seed=3"])
    assert ending.value.code == 0
    ((count, arguments),) = calls
    assert count == 2
    overrides = ["--set", "train_config.n_epochs=1", "--set", "train_config.random_seed=3"]
    given = ["-e", str(spec), "-r", str(tmp_path), "--save-every", "5", "--resume", *overrides]
    assert arguments == ["-c", MAIN_CODE, "train", *given]


def test_without_torch_the_missing_package_is_named(spec: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from trt_cls.cli import main; sys.exit(main(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", code, "train", "-e", str(spec), "-r", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith('pip install "trt-cls[train]"')


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from trt_cls.cli import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
