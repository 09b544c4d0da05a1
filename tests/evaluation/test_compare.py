from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.tiny_models import CONTRACT, RGB, probabilities, write_images, write_onnx
from trt_cls.data.folder import Sample, list_images
from trt_cls.data.split import Dataset
from trt_cls.engines import open_engine
from trt_cls.errors import ArtefactError, DataError
from trt_cls.evaluation.compare import compare, samples_of
from trt_cls.evaluation.metrics import mcnemar


def unlabeled(folder: Path) -> list[Sample]:
    return [Sample(path) for path in list_images(folder)]


def test_a_model_agrees_with_itself(tmp_path: Path) -> None:
    images = unlabeled(write_images(tmp_path / "images", 40))  # more than a batch
    engine = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    found = compare(engine, engine, images)
    assert (found.images, found.top1_agreement, found.max_abs_difference, found.p99) == (120, 1, 0, 0)
    assert found.changed == found.skipped == ()


def test_differences_are_those_of_the_answers(tmp_path: Path) -> None:
    """The second model has the opposite sign: the strongest color becomes the weakest."""
    folder = tmp_path / "images"
    folder.mkdir()
    colors = [(200, 100, 0), (128, 128, 128), (0, 255, 128)]
    for number, color in enumerate(colors):
        Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_text("text")
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, -4.0))
    found = compare(a, b, unlabeled(folder))
    largest = [np.abs(np.subtract(probabilities(color), probabilities(color, -4.0))).max() for color in colors]
    assert found.images == 3
    assert found.top1_agreement == pytest.approx(1 / 3)
    assert found.max_abs_difference == pytest.approx(max(largest), abs=1e-6)
    assert found.p99 == pytest.approx(max(largest), abs=1e-6)
    changes = [(change.path.name, change.label_a, change.label_b, change.truth) for change in found.changed]
    assert changes == [("0.png", "red", "blue", None), ("2.png", "green", "red", None)]
    assert found.changed[0].confidence_a == pytest.approx(max(probabilities(colors[0])), abs=1e-6)
    assert found.changed[0].confidence_b == pytest.approx(max(probabilities(colors[0], -4.0)), abs=1e-6)
    assert [skipped.path.name for skipped in found.skipped] == ["broken.jpg"]


def test_p99_passes_over_one_image_in_two_hundred(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(200):
        Image.new("RGB", (16, 16), (255, 0, 0) if number == 7 else (128, 128, 128)).save(folder / f"{number}.png")
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, 1.0))
    found = compare(a, b, unlabeled(folder))
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


def test_each_has_the_images_by_its_own_contract_where_asked(tmp_path: Path) -> None:
    """Red and blue change places in the second model's input, and so in its answer."""
    folder = tmp_path / "images"
    folder.mkdir()
    colors = [(200, 100, 0), (0, 200, 100), (20, 30, 250)]
    for number, color in enumerate(colors):
        Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
    Image.new("RGB", (1, 600_000)).save(folder / "thin.png")  # too thin to be cropped, but not to be stretched
    (folder / "broken.jpg").write_text("text")
    swapped = replace(CONTRACT, preprocessing=replace(RGB, channel_order="bgr", crop="none"))
    a = open_engine(
        write_onnx(tmp_path / "a.onnx", replace(CONTRACT, preprocessing=replace(RGB, crop="center"))), "cpu"
    )
    b = open_engine(write_onnx(tmp_path / "b.onnx", swapped), "cpu")
    found = compare(a, b, unlabeled(folder), own_preprocessing=True)
    largest = [np.abs(np.subtract(probabilities(color), probabilities(color[::-1]))).max() for color in colors]
    assert found.images == 3
    assert found.max_abs_difference == pytest.approx(max(largest), abs=1e-6)
    changes = [(change.path.name, change.label_a, change.label_b) for change in found.changed]
    assert changes == [("0.png", "red", "blue"), ("2.png", "blue", "red")]
    assert [skipped.path.name for skipped in found.skipped] == ["broken.jpg", "thin.png"]


def test_other_precision_is_no_difference(tmp_path: Path) -> None:
    images = unlabeled(write_images(tmp_path / "images", 1))
    a = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    b = open_engine(write_onnx(tmp_path / "b.onnx", replace(CONTRACT, precision="fp16")), "cpu")
    assert compare(a, b, images).top1_agreement == 1


def test_nothing_decodable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("text")
    engine = open_engine(write_onnx(tmp_path / "a.onnx"), "cpu")
    with pytest.raises(DataError, match="none of 1 images"):
        compare(engine, engine, [Sample(tmp_path / "broken.jpg")])


def test_top_k_agreement_counts_sets_of_classes(tmp_path: Path) -> None:
    """Of five classes the two models share the five likeliest; of the two likeliest they would not."""
    images = unlabeled(write_images(tmp_path / "images", 1))
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, -4.0))
    found = compare(a, b, images)
    assert (found.top_k, found.top_k_agreement, found.top1_agreement) == (3, 1, 0)


def test_folders_named_as_classes_are_labels(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    assert [sample.label for sample in samples_of(folder, ("red", "green", "blue"))] == [2, 2, 1, 1, 0, 0]
    assert [sample.label for sample in samples_of(folder, ("red", "green", "violet"))] == [-1] * 6
    assert [sample.label for sample in samples_of(folder / "red", ("red", "green", "blue"))] == [-1] * 2
    held_out = samples_of(Dataset(folder, "val", 0.5), ("red", "green", "blue"))
    assert [sample.label for sample in held_out] == [0, 1, 2]
    Image.new("RGB", (4, 4)).save(folder / "loose.png")
    assert {sample.label for sample in samples_of(folder, ("red", "green", "blue"))} == {-1}


def test_labels_tell_which_model_is_better(tmp_path: Path) -> None:
    """The second model errs on all 12 images: a coin falls 12 times on one side with probability 2 / 4096."""
    samples = samples_of(write_images(tmp_path / "images", 4), CONTRACT.classes)
    a, b = (open_engine(write_onnx(tmp_path / f"{gain}.onnx", gain=gain), "cpu") for gain in (4.0, -4.0))
    verdict = compare(a, b, samples).verdict
    assert verdict
    assert (verdict.images, verdict.right_a, verdict.right_b) == (12, 12, 0)
    assert (verdict.only_a_right, verdict.only_b_right) == (12, 0)
    assert verdict.p_value == 2 / 4096


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (2, 9), (30, 12), (500, 600), (0, 40)])
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    """Of five, at most one on one side: 2 · (1 + 5) / 32."""
    assert mcnemar(1, 4) == 12 / 32
