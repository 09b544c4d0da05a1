from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import CONTRACT, RGB, probabilities, write_images, write_onnx

from trt_cls.data.folder import list_images
from trt_cls.engines import open_engine
from trt_cls.errors import ArtefactError, DataError
from trt_cls.evaluation.compare import Change, compare


def test_a_model_agrees_with_itself(tmp_path: Path) -> None:
    images = list_images(write_images(tmp_path / "images", 40))  # more than a batch
    engine = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    found = compare(engine, engine, images)
    assert (found.images, found.top1_agreement, found.max_abs_difference, found.p99) == (120, 1, 0, 0)
    assert found.changed == found.skipped == ()


def test_differences_are_those_of_the_answers(tmp_path: Path) -> None:
    """The second model has the opposite sign: the strongest colour becomes the weakest."""
    folder = tmp_path / "images"
    folder.mkdir()
    colors = [(200, 100, 0), (128, 128, 128), (0, 255, 128)]
    for number, color in enumerate(colors):
        Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_text("text")
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, -4.0))
    found = compare(a, b, list_images(folder))
    largest = [np.abs(np.subtract(probabilities(color), probabilities(color, -4.0))).max() for color in colors]
    assert found.images == 3
    assert found.top1_agreement == pytest.approx(1 / 3)
    assert found.max_abs_difference == pytest.approx(max(largest), abs=1e-6)
    assert found.p99 == pytest.approx(max(largest), abs=1e-6)
    assert found.changed == (Change(folder / "0.png", "red", "blue"), Change(folder / "2.png", "green", "red"))
    assert [skipped.path.name for skipped in found.skipped] == ["broken.jpg"]


def test_p99_passes_over_one_image_in_two_hundred(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (16, 16), (255, 0, 0) if number == 7 else (128, 128, 128)).save(folder / f"{number}.png")
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, 1.0))
    found = compare(a, b, list_images(folder))
    assert found.max_abs_difference > 0.3
    assert found.p99 < 1e-6


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(CONTRACT, classes=("red", "green", "violet")), r"classes: \[.*'blue'\] ≠ \[.*'violet'\]"),
        (replace(CONTRACT, preprocessing=replace(RGB, channel_order="bgr")), "channel_order: rgb ≠ bgr"),
        (replace(CONTRACT, preprocessing=replace(RGB, mean=(0.0, 0.0, 0.5))), r"mean: \(0.0, 0.0, 0.0\) ≠"),
    ],
)
def test_models_that_do_not_mean_the_same_are_refused(tmp_path: Path, other: object, named: str) -> None:
    a = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    b = open_engine(write_onnx(tmp_path / "b.onnx", other), "cpu")  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match=named):
        compare(a, b, [])


def test_other_precision_is_no_difference(tmp_path: Path) -> None:
    images = list_images(write_images(tmp_path / "images", 1))
    a = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    b = open_engine(write_onnx(tmp_path / "b.onnx", replace(CONTRACT, precision="fp16")), "cpu")
    assert compare(a, b, images).top1_agreement == 1


def test_nothing_decodable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("text")
    engine = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    with pytest.raises(DataError, match="none of 1 images"):
        compare(engine, engine, [tmp_path / "broken.jpg"])
