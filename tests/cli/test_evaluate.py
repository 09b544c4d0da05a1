from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from support.tiny_models import COLORS, CONTRACT, RGB, SIZE, write_images, write_onnx
from trt_cls.cli import main
from trt_cls.cli.evaluate import _report_missing
from trt_cls.contract import Conformal, Reject
from trt_cls.data.folder import ImageFolder
from trt_cls.data.split import Dataset

SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{size},{size}" use_batch_norm: true }}
train_config {{
  train_dataset_path: "/nowhere" val_dataset_path: "/nowhere" preprocess_mode: "torch"
  optimizer {{ sgd {{ }} }} reg_config {{ type: "None" }} lr_config {{ cosine {{ learning_rate: 0.1 }} }}
}}
eval_config {{ eval_dataset_path: "{data}" model_path: "{model}" batch_size: 4 n_workers: 2 }}
"""
TORCH = replace(RGB, crop="center", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The pixels that the spec asks for."""
FITTING = replace(CONTRACT, preprocessing=TORCH)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """spec.txt, model.onnx and data/, which fit together."""
    write_images(tmp_path / "data", 4)
    write_onnx(tmp_path / "model.onnx", FITTING)
    (tmp_path / "spec.txt").write_text(SPEC.format(size=SIZE, data=tmp_path / "data", model=tmp_path / "model.onnx"))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `evaluate -e spec.txt` with more arguments: exit status, stdout, stderr."""

    def evaluate(*arguments: str | Path) -> tuple[int, str, str]:
        status = main(["evaluate", "-e", str(folder / "spec.txt"), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return evaluate


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_measures_the_model_that_the_spec_names(run: Run, folder: Path) -> None:
    status, out, err = run("-r", folder / "new" / "results")
    assert status == 0
    assert "top-1 accuracy     1.0000" in out.splitlines()
    assert "Confusion Matrix" in out
    assert "Classification Report" in out
    assert err == "top_k is 5, the model has 3 classes: top-3 is reported\n"
    results = json.loads((folder / "new" / "results" / "results.json").read_text())
    assert (results["num_images"], results["top_1_accuracy"], results["top_k"]) == (12, 1, 3)
    assert str(folder / "new" / "results" / "results.json") in out
    assert len((folder / "new" / "results" / "predictions.csv").read_text().splitlines()) == 13


def test_a_model_and_a_folder_need_no_spec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = ("-m", str(folder / "model.onnx")), ("--dataset", str(folder / "data"))
    assert main(["evaluate", *model, *data]) == 0
    assert "images             12, 0 skipped" in capsys.readouterr().out
    for words, message in ((model, "add -e SPEC or --dataset DIR"), (data, "name one with -m"), ((), "-e SPEC")):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err


def test_with_a_split_the_held_out_images_alone_are_measured(run: Run, folder: Path) -> None:
    text = (folder / "spec.txt").read_text().replace(f'eval_dataset_path: "{folder / "data"}"', "")
    text = text.replace('val_dataset_path: "/nowhere"', "").replace("/nowhere", str(folder / "data"))
    (folder / "spec.txt").write_text(text + "extensions { validation_split: 0.25 }")
    status, out, _ = run("-r", folder / "results", "--top-k", "1")
    assert status == 0
    assert "3 images of " in out
    with (folder / "results" / "predictions.csv").open(newline="") as file:
        measured = {Path(row["path"]) for row in csv.DictReader(file)}
    held_out = Dataset(folder / "data", "val", 0.25, 42).images()
    assert measured == set(held_out)
    assert sorted(path.parent.name for path in held_out) == ["blue", "green", "red"]
    assert run("--dataset", folder / "data", "--top-k", "1")[1].count("images             12,") == 1


def test_flags_go_before_the_spec(run: Run, folder: Path) -> None:
    write_onnx(folder / "weak.onnx", FITTING, gain=-1.0)
    write_images(folder / "other", 2)
    text = (folder / "spec.txt").read_text().replace(str(folder / "data"), "/nowhere")
    (folder / "spec.txt").write_text(text)
    arguments = ("-m", folder / "weak.onnx", "--dataset", folder / "other", "-b", "5", "--top-k", "2", "-k", "tlt")
    status, _, err = run(
        *arguments, "--provider", "cpu", "-r", folder, "--tta", "flip", "--set", "eval_config.n_workers=1"
    )
    assert (status, err) == (0, "-k/--key is ignored: models are not encrypted\n")
    results = json.loads((folder / "results.json").read_text())
    assert results["backend"] == "onnxruntime-cpu + flips"
    assert (results["num_images"], results["top_1_accuracy"], results["top_k"]) == (6, 0, 2)
    assert results["model"] == str(folder / "weak.onnx")


def test_writes_nothing_without_a_results_folder(run: Run, folder: Path) -> None:
    before = set(folder.rglob("*"))
    assert run()[0] == 0
    assert set(folder.rglob("*")) == before


def test_broken_images_are_listed_and_strict_refuses_them(run: Run, folder: Path) -> None:
    half, text = folder / "data" / "red" / "half.jpg", folder / "data" / "blue" / "text.jpg"
    Image.effect_noise((64, 64), 80).save(half)
    truncate(half, half.stat().st_size // 2)
    text.write_text("not a picture")

    status, out, err = run("-r", folder, "--top-k", "1")
    assert status == 0
    assert "images             12, 2 skipped" in out.splitlines()
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(half), str(text)]
    assert [entry["path"] for entry in json.loads((folder / "results.json").read_text())["skipped"]] == [
        str(half),
        str(text),
    ]

    status, out, err = run("--strict", "--top-k", "1")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: 2 images can't be decoded, the first is {half}: ")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "no such file; expected a model"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), "is empty"),
        (lambda folder: truncate(folder / "model.onnx", 300), "is truncated"),
        (lambda folder: write_onnx(folder / "model.onnx", None), "not exported by trt-cls"),
        (lambda folder: write_onnx(folder / "model.onnx", CONTRACT), "preprocessing: crop is center in the spec"),
        (lambda folder: write_onnx(folder / "model.onnx", replace(FITTING, classes=("a", "b", "c"))), "data: "),
        (lambda folder: (folder / "data").rename(folder / "moved"), "eval_dataset_path"),
        (lambda folder: [path.unlink() for path in (folder / "data").rglob("*.png")], "no images"),
        (lambda folder: [path.write_text("x") for path in (folder / "data" / "red").iterdir()], 'class "red"'),
        (lambda folder: (folder / "data" / "pink").mkdir(), "pink"),
        (lambda folder: (folder / "spec.txt").unlink(), "no such file"),
        (lambda folder: (folder / "spec.txt").write_text('model_config { arch: "resnet" }'), "eval_config: missing"),
    ],
)  # fmt: skip
def test_each_bad_input_has_its_own_one_line_error(
    run: Run, folder: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(folder)
    status, out, err = run("--top-k", "1", "-r", folder / "results")
    assert (status, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert not (folder / "results" / "results.json").exists()


def test_a_model_must_be_named_somewhere(run: Run) -> None:
    status, _, err = run("--set", 'eval_config.model_path=""')
    assert status == 2
    assert "eval_config.model_path is not set" in err


def test_a_spec_without_training_leaves_the_pixels_to_the_model(run: Run, folder: Path) -> None:
    write_onnx(folder / "model.onnx", CONTRACT)
    lines = (folder / "spec.txt").read_text().splitlines()
    (folder / "spec.txt").write_text(
        "\n".join(line for line in lines if line.startswith(("model_config", "eval_config")))
    )
    assert run("--top-k", "1")[0] == 0


def test_a_class_map_must_be_that_of_the_model(run: Run, folder: Path) -> None:
    classmap = folder / "classmap.json"
    classmap.write_text(json.dumps({name: index for index, name in enumerate(COLORS)}))
    assert run("-cm", classmap)[0] == 0
    classmap.write_text(json.dumps({"blue": 0, "green": 1, "red": 2}))
    status, _, err = run("-cm", classmap)
    assert status == 2
    assert "['blue', 'green', 'red'] in the class map, ['red', 'green', 'blue'] in the model" in err


def test_a_results_folder_that_is_a_file_is_refused(run: Run, folder: Path) -> None:
    status, _, err = run("-r", folder / "spec.txt")
    assert status == 2
    assert "results can't be written there" in err


def test_an_onnx_file_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from trt_cls.cli import main\n"
        f"assert main(['evaluate', '-e', {str(folder / 'spec.txt')!r}, '-r', {str(folder)!r}]) == 0\n"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads((folder / "results.json").read_text())["num_images"] == 12


@pytest.mark.parametrize("empty", [False, True], ids=["no folder", "an empty one"])
def test_a_test_set_without_a_class_measures_the_others(empty: bool, run: Run, folder: Path) -> None:
    data, gone = folder / "data", sorted((folder / "data").iterdir())[-1]
    shutil.rmtree(gone)
    if empty:
        gone.mkdir()
    status, _, err = run("-r", str(folder / "out"))
    assert status == 0
    assert f"{data}: no images of 1 of 3 classes (support 0): {gone.name}" in err
    scores = json.loads((folder / "out/results.json").read_text())["per_class"]
    assert scores[gone.name]["support"] == 0
    assert all(score["support"] > 0 for name, score in scores.items() if name != gone.name)


def test_a_class_name_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _report_missing(ImageFolder(Path("data"), (), ("\x1b[2J\u202egone",)))
    assert capsys.readouterr().err.endswith("(support 0): \\x1b[2J\\u202egone\n")


def test_foreign_images_and_the_models_rules_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve images are at 0.965, one is at 0.87; of the foreign ones one is at 0.94, one at 1/3, and one is broken."""
    rules = replace(CONTRACT, conformal=Conformal(0.9, 0.25), reject=Reject(0.1, 0.5))
    model, foreign = write_onnx(tmp_path / "rules.onnx", rules), tmp_path / "foreign"
    (foreign / "deep").mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE), (255, 128, 0)).save(folder / "data" / "red" / "orange.png")
    Image.new("RGB", (SIZE, SIZE), (255, 64, 0)).save(foreign / "red.png")
    Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(foreign / "deep" / "gray.png")
    (foreign / "text.jpg").write_text("not a picture")
    words = ["evaluate", "-m", str(model), "--dataset", str(folder / "data"), "--top-k", "1"]
    assert main([*words, "--unknown", str(foreign), "-r", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["coverage"] == {"target": 0.9, "measured": 1.0, "mean_set_size": 1.0}
    assert found["unknown"] == {"auroc": 25 / 26, "num_images": 2}
    assert found["num_images"] == 13
    assert [entry["path"] for entry in found["skipped"]] == [str(foreign / "text.jpg")]
    for line in (
        "images             13, 1 skipped",
        "coverage           1.0000 of 0.9, 1.00 classes in a set",
        "decisions          unknown 0, label 13, set 0",
        "foreign images     unknown 1, label 1, set 0",
        "unknown AUROC      0.9615 against 2 images",
    ):
        assert line in out.splitlines()
    report = (tmp_path / "results" / "report.html").read_text()
    for text in ("Coverage</h2><b>100.00", "Foreign images</h2><b>0.9615", "<h2>Decisions</h2>", "text.jpg"):
        assert text in report
    assert main([*words, "--unknown", str(foreign), "--strict"]) == 2
    assert "1 image can't be decoded" in capsys.readouterr().err
    assert main([*words, "--unknown", str(tmp_path / "absent")]) == 2
    assert "absent: no such file or folder" in capsys.readouterr().err
    assert main(words) == 0
    assert "AUROC" not in capsys.readouterr().out
