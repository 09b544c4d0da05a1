from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import COLORS, probabilities, write_images, write_onnx

from trt_cls.cli import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_an_image_gets_its_likeliest_labels(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    color = (200, 10, 100)
    Image.new("RGB", (30, 20), color).save(tmp_path / "image.png")
    red, green, blue = probabilities(color)
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / "image.png")]) == 0
    assert capsys.readouterr().out == f"red    {red:.4f}\nblue   {blue:.4f}\ngreen  {green:.4f}\n"
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / "image.png"), "--top-k", "1"]) == 0
    assert capsys.readouterr().out == f"red  {red:.4f}\n"
    assert not (tmp_path / "result.csv").exists()


@pytest.mark.parametrize("flag", ["-i", "-d", "--image_dir"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_folder_gives_result_csv(model: Path, tmp_path: Path, flag: str, elsewhere: bool) -> None:
    images = write_images(tmp_path / "images", 3)
    (images / "green" / "0.png").rename(images / "green" / 'a, "b".png')
    results = ["-r", str(tmp_path / "results")] if elsewhere else []
    assert main(["infer", "-m", str(model), flag, str(images), "-b", "2", "-k", "key", *results]) == 0
    found = rows((tmp_path / "results" if elsewhere else images) / "result.csv")
    confidence = f"{max(probabilities(COLORS['red'])):.6f}"
    assert len(found) == 9
    for path, label, score in found:
        assert Path(path).is_file()
        assert (Path(path).parent.name, score) == (label, confidence)
    assert str(images / "green" / 'a, "b".png') in [row[0] for row in found]


def test_a_name_that_is_no_utf8_comes_out_as_it_is(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    name = b"caf\xe9.png"
    (images / "red" / "0.png").rename(images / os.fsdecode(name))
    (images / os.fsdecode(b"\xff.jpg")).write_text("broken")
    assert main(["infer", "-m", str(model), "-i", str(images)]) == 0
    assert name + b",red," in (images / "result.csv").read_bytes()


def test_broken_images_are_skipped_counted_and_listed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 1)
    (images / "broken.jpg").write_text("text")
    assert main(["infer", "-m", str(model), "-i", str(images)]) == 0
    out, err = capsys.readouterr()
    assert out == f"3 images labelled, 1 skipped; written: {images / 'result.csv'}\n"
    assert err.startswith(f"skipped: {images / 'broken.jpg'}: ")
    assert len(rows(images / "result.csv")) == 3


@pytest.mark.parametrize("name", ["broken.jpg", "missing.jpg", "empty", "text.txt"])
def test_nothing_to_label_is_an_error(
    model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_text("text")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert name in err
    assert not list(tmp_path.rglob("result.csv"))


def test_a_class_map_of_other_classes_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 1)
    classmap = tmp_path / "classmap.json"
    classmap.write_text(json.dumps({"red": 0, "green": 1}))
    assert main(["infer", "-m", str(model), "-i", str(images), "-cm", str(classmap)]) == 2
    assert "disagree on the classes" in capsys.readouterr().err


def test_a_spec_of_other_pixels_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", 1)
    (tmp_path / "spec.txt").write_text(
        """model_config { input_image_size: "3,16,16" }
        train_config { train_dataset_path: "a" val_dataset_path: "b" optimizer { sgd { } } reg_config { type: "None" }
                       lr_config { cosine { learning_rate: 0.1 } } }"""
    )
    assert main(["infer", "-m", str(model), "-i", str(images), "-e", str(tmp_path / "spec.txt")]) == 2
    assert "channel_order is bgr in the spec and rgb in the model" in capsys.readouterr().err
