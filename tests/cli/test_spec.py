from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.shared_data import TAO_SPEC
from support.spec_texts import spec_text
from trt_cls.cli import main
from trt_cls.spec import loads
from trt_cls.spec.differences import DIFFERENCES, differences
from trt_cls.spec.reference import reference

FIVE_MISTAKES = """\
model_config {
  arch: "vgg"
  use_bais: true
}
train_config {
  train_dataset_path: "."
  val_dataset_path: "."
  batch_size_per_gpu: 0
  optimizer { sgd { } adam { } }
  reg_config { type: "L2" scope: "Conv2D" weight_decay: 0.1 }
}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec whose folders exist."""
    path = tmp_path / "spec.txt"
    path.write_text(spec_text(evaluation="").replace('"train"', '"."').replace('"val"', '"."').replace('"test"', '"."'))
    return path


def test_check_says_ok_with_a_summary(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "check", str(spec), "--set", "model_config.n_layers=34"]) == 0
    assert capsys.readouterr().out.startswith(f"{spec}: ok (resnet34, 3×224×224, ")


def test_check_reports_each_mistake_on_a_line_and_exits_with_2(tmp_path: Path) -> None:
    spec = tmp_path / "spec.txt"
    spec.write_text(FIVE_MISTAKES)
    command = [sys.executable, "-m", "trt_cls", "spec", "check", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"}, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(": ")[2].split(": ")[:2] for line in done.stderr.splitlines()] == [
        [f"{spec}:1", "model_config.n_layers"],
        [f"{spec}:3", "model_config.use_bais"],
        [f"{spec}:5", "train_config.lr_config"],
        [f"{spec}:8", "train_config.batch_size_per_gpu"],
        [f"{spec}:9", "train_config.optimizer.adam"],
    ]
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_check_looks_for_the_folders_of_all_sections_unless_asked_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    spec = str(TAO_SPEC)
    assert main(["spec", "check", spec]) == 2
    error = capsys.readouterr().err
    for name in ("train_dataset_path", "val_dataset_path", "pretrained_model_path", "eval_dataset_path"):
        assert name in error
    assert main(["spec", "check", "--no-paths", spec]) == 0


@pytest.mark.parametrize("name", ["cifar10_resnet18", "cifar10_resnet18_muon", "digits_resnet10", "photos_resnet50"])
def test_a_spec_of_a_fresh_checkout_runs_or_says_how(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(Path(__file__).parents[2] / f"specs/{name}.txt")
    monkeypatch.chdir(tmp_path)
    assert main(["spec", "check", spec]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert ("; make demo writes it" in line) == (name == "digits_resnet10")
        assert line.endswith("; spec check --no-paths leaves it out")
    assert main(["spec", "check", "--no-paths", spec]) == 0


def test_check_names_encrypted_files_and_the_differences_from_tao(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "check", "--no-paths", str(TAO_SPEC)]) == 0
    said = capsys.readouterr().out
    assert 'encrypted: model_path: "/workspace/results/weights/resnet_080.tlt": TAO encrypted it' in said
    assert "take the .hdf5" in said
    assert "  resnet with use_pooling: averages the map; TAO's code its upper left 4×4\n" in said
    assert "lr_config.step" not in said, "it has another schedule"
    assert "  running variance of batch normalization: comes from the unbiased variance" in said


def test_check_names_encrypted_files_of_a_spec_with_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.txt"
    spec.write_text('train_config { pretrained_model_path: "a.tlt" epochs: 3 }  # was: "old.tlt"\n')
    override = ["--set", "eval_config.model_path=b.etlt"]
    assert main(["spec", "check", str(spec), *override]) == 2
    said, errors = capsys.readouterr()
    assert said.startswith('encrypted: pretrained_model_path: "a.tlt": TAO encrypted it')
    assert 'encrypted: model_path: "b.etlt"' in said
    assert said.count("encrypted:") == 2
    assert "epochs" in errors
    assert main(["spec", "check", str(spec), "--set", "train_config.pretrained_model_path=a.hdf5"]) == 2
    assert "encrypted:" not in capsys.readouterr().out


def test_each_difference_that_check_lists_is_documented() -> None:
    rows = (Path(__file__).parents[2] / "docs/differences-from-tao.md").read_text().splitlines()
    documented = {line.split(" | ")[0].removeprefix("| ") for line in rows if line.startswith("| ")}
    assert {row for row, _, _ in DIFFERENCES} <= documented


def met(text: str) -> list[str]:
    experiment = loads(text)
    assert experiment.train_config is not None
    return differences(experiment.model_config, experiment.train_config, text)


def test_only_what_a_spec_leaves_out_counts_as_omitted() -> None:
    text = spec_text(optimizer="optimizer { sgd { momentum: 0.9 } }", train="label_smoothing: 0.1 mixup_alpha: 0")
    assert met(text) == ["label_smoothing: smooths the targets; TAO's code ignores it"]
    assert "omitted optimizer fields: take the documented defaults; TAO's code takes 0" in met(spec_text())


def test_check_needs_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.txt"
    spec.write_text("model_config { }")
    assert main(["spec", "check", str(spec)]) == 2
    assert "train_config: missing" in capsys.readouterr().err


def test_show_prints_a_spec_that_loads_back(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "show", str(spec), "--set", "train_config.n_epochs=3"]) == 0
    shown = capsys.readouterr().out
    assert "n_epochs: 3\n" in shown
    assert loads(shown) == loads(spec.read_text(), overrides=["train_config.n_epochs=3"])


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_fields_lists_every_field(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "fields", *options]) == 0
    listed = capsys.readouterr().out
    assert all(path.partition(".")[2] in listed for path in reference())
    assert "label_smoothing" in listed


def test_a_missing_file_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "check", "nowhere.txt"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.txt: no such file")
