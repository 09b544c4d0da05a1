from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.tiny_models import COLORS, CONTRACT, probabilities, write_images, write_onnx
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.engines import open_engine
from trt_cls.engines.engine import Engine
from trt_cls.errors import DataError, EngineError, RequestError
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.evaluation.inference import WithFlips
from trt_cls.evaluation.report.evaluation_page import evaluation_page
from trt_cls.evaluation.results import evaluation_table, results_dict, write_evaluation

PER_CLASS = 5
WARM = replace(CONTRACT, temperature=2.0)
KEYS = [
    "model", "backend", "precision", "num_images", "skipped", "top_k", "top_1_accuracy", "top_k_accuracy",
    "balanced_accuracy", "macro_f1", "loss",
    "classes", "confusion_matrix", "per_class", "ece", "images_per_second", "seconds",
]  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_engine(write_onnx(tmp_path / "model.onnx"), "cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Colors in their own folders; but for one blue image that stands among the red ones."""
    folder = write_images(tmp_path / "data", PER_CLASS)
    Image.new("RGB", (8, 8), COLORS["blue"]).save(folder / "red" / "really blue, it is.png")
    return folder


def read(root: Path) -> ImageFolder:
    return image_folder(root, CONTRACT.classes)


def halve(path: Path) -> None:
    """A JPEG of which the second half is missing."""
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("batch_size", [1, 7, 16, 500])
@pytest.mark.parametrize("workers", [0, 3])
def test_every_image_counts(engine: Engine, root: Path, batch_size: int, workers: int) -> None:
    result = evaluate(engine, read(root), batch_size=batch_size, workers=workers, top_k=2)
    assert len(result.predictions.samples) == 3 * PER_CLASS + 1
    assert result.metrics.confusion_matrix.tolist() == [[5, 0, 1], [0, 5, 0], [0, 0, 5]]
    assert result.metrics.top_1_accuracy == 15 / 16
    # the blue image answers red and green alike: red has the lower index and is second
    assert result.metrics.top_k_accuracy == 1
    assert result.predictions.skipped == ()


def test_broken_images_are_listed_and_the_rest_counts(engine: Engine, root: Path) -> None:
    halve(root / "green" / "half.jpg")
    (root / "blue" / "0 text.jpg").write_text("not a picture")
    result = evaluate(engine, read(root), batch_size=4, workers=2, top_k=1)
    assert len(result.predictions.samples) == 3 * PER_CLASS + 1
    assert result.metrics.confusion_matrix.sum() == 3 * PER_CLASS + 1
    assert [skipped.path.name for skipped in result.predictions.skipped] == ["half.jpg", "0 text.jpg"]
    assert all(skipped.reason for skipped in result.predictions.skipped)


def test_a_class_without_any_image_left_is_an_error(engine: Engine, root: Path) -> None:
    for path in (root / "green").iterdir():
        path.write_text("broken")
    with pytest.raises(DataError, match=r'no image of class "green" can be decoded.*green/0\.png'):
        evaluate(engine, read(root), batch_size=4, workers=2, top_k=1)


def test_nothing_decodable_is_an_error(engine: Engine, root: Path) -> None:
    for path in root.glob("*/*"):
        path.write_text("broken")
    with pytest.raises(DataError, match=r"none of 16 images can be decoded, the first is .*0\.png"):
        evaluate(engine, read(root), batch_size=4, workers=2, top_k=1)


def test_a_folder_of_other_classes_is_refused(engine: Engine, root: Path) -> None:
    with pytest.raises(RequestError, match="expected the model's"):
        evaluate(engine, image_folder(root), batch_size=4, workers=2, top_k=1)


def test_answers_that_are_no_numbers_are_an_error(tmp_path: Path, root: Path) -> None:
    engine = open_engine(write_onnx(tmp_path / "nan.onnx", gain=float("nan")), "cpu")
    with pytest.raises(EngineError, match="NaN"):
        evaluate(engine, read(root), batch_size=4, workers=2, top_k=1)


def test_top_k_is_never_more_than_the_classes(engine: Engine, root: Path) -> None:
    assert evaluate(engine, read(root), batch_size=4, workers=2, top_k=5).top_k == 3


class LeftHalf:
    """The mean of the left half, and one less that."""

    contract, backend, closed = CONTRACT, "left", False

    def infer(self, images: Any) -> Any:
        left = images[..., : images.shape[3] // 2].mean(axis=(1, 2, 3))
        return np.stack([left, 1 - left], axis=1)

    def close(self) -> None:
        self.closed = True


def test_flips_average_the_answers_to_an_image_and_its_mirror_image() -> None:
    engine = LeftHalf()
    images = np.random.default_rng(0).random((3, 3, 8, 8)).astype(np.float32)
    flipping = WithFlips(engine)
    means = images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(flipping.infer(images), np.stack([means, 1 - means], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(flipping.infer(images), flipping.infer(images[..., ::-1]))
    assert flipping.backend == "left + flips"
    flipping.close()
    assert engine.closed


class SlowEngine:
    """Takes 20 ms a batch, as long as the images of a batch take to decode in one thread."""

    contract = CONTRACT
    backend = "slow"

    def infer(self, images: Any) -> Any:
        time.sleep(0.05)
        return np.full((len(images), 3), 1 / 3, np.float32)

    def close(self) -> None:
        pass


def test_decoding_overlaps_with_inference(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_cls.data import stream

    read_file = stream.read

    def slow(path: Path, channels: int) -> np.ndarray:
        time.sleep(0.05)
        return read_file(path, channels)

    monkeypatch.setattr(stream, "read", slow)
    seconds = evaluate(SlowEngine(), read(root), batch_size=2, workers=2, top_k=1).predictions.seconds
    one_after_the_other = 8 * (0.05 + 0.05)
    assert seconds.inference == pytest.approx(8 * 0.05, rel=0.4)
    assert seconds.total < 0.8 * one_after_the_other
    assert seconds.waiting_for_data + seconds.inference == pytest.approx(seconds.total, rel=0.2)


def test_results_hold_the_documented_keys(engine: Engine, root: Path, tmp_path: Path) -> None:
    halve(root / "green" / "half.jpg")
    result = evaluate(engine, read(root), batch_size=4, workers=2, top_k=9)
    results, _, _ = write_evaluation(result, Path("some/model.onnx"), tmp_path)
    content = json.loads(results.read_text())
    assert list(content) == KEYS
    assert content["model"] == "some/model.onnx"
    assert content["backend"] == "onnxruntime-cpu"
    assert (content["precision"], content["num_images"], content["top_k"]) == ("fp32", 16, 3)
    assert content["skipped"] == [{"path": str(root / "green" / "half.jpg"), "reason": content["skipped"][0]["reason"]}]
    assert content["classes"] == list(COLORS)
    scores = {"precision": 1, "recall": 5 / 6, "f1": 10 / 11, "support": 6}
    assert content["per_class"]["red"].items() >= scores.items()
    assert set(content["seconds"]) == {"waiting_for_data", "inference", "total"}
    assert content["images_per_second"] == pytest.approx(16 / content["seconds"]["total"])
    assert content == json.loads(json.dumps(results_dict(result, Path("some/model.onnx"))))


def test_predictions_name_each_image_once(engine: Engine, root: Path, tmp_path: Path) -> None:
    result = evaluate(engine, read(root), batch_size=4, workers=2, top_k=1)
    _, table, _ = write_evaluation(result, Path("model.onnx"), tmp_path)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    confidence = f"{max(probabilities(COLORS['blue'])):.6f}"
    assert wrong == [
        {
            "path": str(root / "red" / "really blue, it is.png"),
            "label": "red",
            "predicted": "blue",
            "confidence": confidence,
        }
    ]


def test_an_engine_that_takes_its_input_from_the_cpu_refuses_cuda(engine: Engine, root: Path) -> None:
    with pytest.raises(RequestError, match=r"--executor cuda: the model runs on onnxruntime-cpu.*--executor cpu"):
        evaluate(engine, read(root), batch_size=4, top_k=1, workers=2, executor="cuda")


def test_a_calibrated_file_is_reported_without_its_temperature_too(tmp_path: Path) -> None:
    folder = image_folder(write_images(tmp_path / "images", PER_CLASS), CONTRACT.classes)
    plain, warm = (
        evaluate(
            open_engine(write_onnx(tmp_path / "m.onnx", contract, gain), "cpu"),
            folder,
            top_k=1,
            batch_size=8,
            workers=0,
        )
        for contract, gain in ((CONTRACT, 4.0), (WARM, 2.0))
    )
    found = results_dict(warm, Path("m.onnx"))["calibration"]
    assert found == {"temperature": 2.0, "ece_before": pytest.approx(plain.metrics.ece), "ece_after": warm.metrics.ece}
    assert f"({plain.metrics.ece:.4f} without temperature 2)" in evaluation_table(warm)
    assert "Before calibration" in evaluation_page(warm, Path("m.onnx"))
    assert "Before calibration" not in evaluation_page(plain, Path("m.onnx"))
