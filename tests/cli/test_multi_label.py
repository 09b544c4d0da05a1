"""The commands on a multi-label model: evaluate, infer, compare, and what is written for servers."""

from __future__ import annotations

import csv
import json
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.tiny_models import CONTRACT, write_onnx
from trt_cls import load
from trt_cls.artefacts.sidecar import Profile
from trt_cls.cli import main
from trt_cls.serving.common import ServedPlan
from trt_cls.serving.deepstream import write_deepstream
from trt_cls.serving.triton import write_triton

PICTURES = {
    "black": (0, 0, 0),
    "cyan": (0, 255, 200),
    "red": (255, 0, 0),
    "white": (250, 255, 252),
    "yellow": (255, 200, 0),
}
ROWS = ("black,", "cyan,green|blue", "red,red|green", "white,red|green|blue", "yellow,red")
"""Red lacks green, and yellow has it too much."""
MULTI = replace(CONTRACT, task="multi", thresholds=(0.6, 0.7, 0.6))
NO_PLAN = ServedPlan(None, Profile(1, 8, 32), "not asked for")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """sigmoid(4 · mean of red, green, blue)."""
    return write_onnx(tmp_path / "model.onnx", MULTI)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in PICTURES.items():
        Image.new("RGB", (20, 20), color).save(folder / f"{name}.png")
    rows = [row.replace(",", ".png,", 1) for row in ROWS]
    (folder / "labels.csv").write_text("\n".join(["path,labels", *rows, "gone.png,red"]))
    return folder


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_evaluate_writes_the_figures_and_answers(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "-m", str(model), "--dataset", str(images), "-r", str(out)]) == 0
    captured = capsys.readouterr()
    assert "mAP" in captured.out
    assert captured.err == f"skipped: {images / 'gone.png'}: no such file, though labels.csv lists it\n"
    results = json.loads((out / "results.json").read_text())
    per_class = {name: scores["f1"] for name, scores in results["per_class"].items()}
    assert per_class == pytest.approx({"red": 1.0, "green": 2 / 3, "blue": 1.0})
    assert results["exact_match"] == pytest.approx(3 / 5)
    assert results["hamming_loss"] == pytest.approx(2 / 15)
    assert results["mAP"] == pytest.approx((1 + 1 + (1 / 2 + 2 / 2) / 3 + 3 / 5 / 3) / 3, abs=0.2)
    assert (results["task"], results["num_images"], len(results["skipped"])) == ("multi", 5, 1)
    assert set(results["per_class"]["red"]) == {"ap", "precision", "recall", "f1", "support", "threshold"}
    assert results.keys().isdisjoint({"top_k", "top_1_accuracy", "confusion_matrix", "ece"})
    table = rows_of(out / "predictions.csv")
    assert table[0] == ["path", "truth", "predicted"]
    assert [row[1:] for row in table[1:]] == [
        ["", ""],
        ["green|blue", "green|blue"],
        ["red|green", "red"],
        ["red|green|blue", "red|green|blue"],
        ["red", "red|green"],
    ]
    with np.load(out / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == [row[0] for row in table[1:]]
        assert (arrays["truth"].dtype, arrays["probabilities"].dtype) == (np.uint8, np.float32)
        assert arrays["truth"].tolist()[2] == [1, 1, 0]
        assert ((arrays["probabilities"] >= MULTI.thresholds).sum(axis=1) == [0, 2, 1, 3, 2]).all()
    report = (out / "report.html").read_text()
    assert "Surest wrong labels" in report
    assert "no such file, though labels.csv lists it" in report
    assert main(["evaluate", "-m", str(model), "--dataset", str(images), "--tta", "flip"]) == 0


def test_a_label_without_images_has_no_average_precision(model: Path, images: Path, tmp_path: Path) -> None:
    (images / "labels.csv").write_text("black.png,\nred.png,red\nyellow.png,red|green\n")
    assert main(["evaluate", "-m", str(model), "--dataset", str(images), "-r", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["per_class"]["blue"]["ap"], results["mAP"]) == (None, 1.0)


def test_infer_gives_every_label_over_its_threshold_likeliest_first(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(tmp_path)]) == 0
    assert "5 images labeled" in capsys.readouterr().out
    found = [[Path(path).stem, label, confidence] for path, label, confidence in rows_of(tmp_path / "result.csv")]
    assert [row[:2] for row in found] == [
        ["black", ""],
        *(["cyan", label] for label in ("green", "blue")),
        ["red", "red"],
        *(["white", label] for label in ("green", "blue", "red")),
        *(["yellow", label] for label in ("red", "green")),
    ]
    assert found[0][2] == ""
    assert float(found[3][2]) == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert main(["infer", "-m", str(model), "-i", str(images), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["decision"] for line in lines} == {"set"}
    assert (lines[0]["label"], lines[0]["top"]) == (None, [])
    assert [entry["label"] for entry in lines[3]["set"]] == ["green", "blue", "red"]
    for name, text in (("black", "no label reaches its threshold"), ("red", "red  0.9820")):
        assert main(["infer", "-m", str(model), "-i", str(images / f"{name}.png")]) == 0
        assert capsys.readouterr().out == f"{text}\n"
    with load(model, "cpu") as classifier:
        given = classifier.predict([images / f"{name}.png" for name in ("black", "yellow")])
    assert given.tolist() == [[False, False, False], [True, True, False]]


@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_top_k_is_refused(model: Path, images: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--dataset", str(images)] if command == "evaluate" else ["-i", str(images)]
    assert main([command, "-m", str(model), "--top-k", "2", *given]) == 2
    assert capsys.readouterr().err.startswith("error: --top-k 2: the model gives any number of labels")


def test_compare_tests_each_label(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_onnx(tmp_path / "other.onnx", replace(MULTI, thresholds=(0.6, 0.97, 0.6)))
    assert main(["compare", str(model), str(other), "--images", str(images), "-r", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "same labels          80.00%, 1 image changed" in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "%" in line}
    assert lines["green"] == ["60.00%", "80.00%", "0", "1", "1"]
    assert lines["red"] == ["100.00%", "100.00%", "0", "0", "1"]
    assert "yellow.png: A red|green, B red, is red" in out
    assert rows_of(tmp_path / "out" / "changed.csv")[1][1::2][:2] == ["red|green", "red"]
    assert "McNemar" in (tmp_path / "out" / "comparison.html").read_text()
    single = write_onnx(tmp_path / "single.onnx")
    flags = ["--images", str(images), "--own-preprocessing"]
    assert main(["compare", str(model), str(single), *flags]) == 2
    assert "task: multi ≠ single" in capsys.readouterr().err


def test_a_spec_with_class_folders_does_not_fit(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.txt"
    text = """
    model_config { arch: "resnet" n_layers: 10 input_image_size: "3,16,16" }
    train_config { train_dataset_path: "." val_dataset_path: "." preprocess_mode: "tf"
      optimizer { sgd { } } reg_config { type: "None" } lr_config { cosine { learning_rate: 0.1 } } }
    eval_config { eval_dataset_path: "." }
    """
    spec.write_text(text)
    assert main(["evaluate", "-e", str(spec), "-m", str(model), "--dataset", str(images)]) == 2
    err = capsys.readouterr().err
    assert "the spec has no extensions.labels, and the model was trained on several labels per image" in err


def test_deepstream_gets_no_arg_max_but_tensors_and_thresholds(model: Path, tmp_path: Path) -> None:
    write_deepstream(model, NO_PLAN, tmp_path / "deepstream", lambda line: None)
    config = ConfigParser()
    config.read(tmp_path / "deepstream" / "nvinfer_config.txt")
    found = config["property"]
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")
    assert found.keys().isdisjoint({"classifier-threshold", "labelfile-path"})
    assert rows_of(tmp_path / "deepstream" / "thresholds.csv") == [
        ["label", "threshold"], ["red", "0.6"], ["green", "0.7"], ["blue", "0.6"],
    ]  # fmt: skip
    assert "thresholds.csv" in (tmp_path / "deepstream" / "README.md").read_text()


def test_the_triton_client_gives_what_infer_gives(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    pytest.importorskip("tritonclient.grpc")
    from support.triton_stand_in import serve
    from trt_cls.serving import triton_client

    write_triton(model, NO_PLAN, tmp_path / "repository", lambda line: None)
    with serve(tmp_path / "repository" / "model") as (url, _):
        monkeypatch.setattr("sys.argv", ["client.py", str(images), "--url", url, "--model", "model"])
        triton_client.main()
    found = list(csv.reader(capfdbinary.readouterr().out.decode().splitlines()))
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(tmp_path)]) == 0
    assert found == rows_of(tmp_path / "result.csv")
