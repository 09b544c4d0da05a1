from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trt_cls
from support.tiny_models import COLORS, CONTRACT, RGB, SIZE, probabilities, write_images, write_onnx
from trt_cls.engines.classifier import BATCH_SIZE, Classifier
from trt_cls.errors import DataError, EngineError, RequestError

GREEN = np.full((20, 30, 3), (0, 255, 0), np.uint8)


@pytest.fixture
def classifier(tmp_path: Path) -> Iterator[Classifier]:
    with trt_cls.load(write_onnx(tmp_path / "model.onnx"), "cpu") as opened:
        yield opened


def test_carries_classes_and_contract(classifier: Classifier) -> None:
    assert classifier.classes == tuple(COLORS)
    assert classifier.contract == CONTRACT


def test_one_image_may_come_in_any_form(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "green.png"
    Image.fromarray(GREEN).save(path)
    preprocessed = np.broadcast_to(np.array([0, 1, 0], np.float32)[:, None, None], (1, 3, SIZE, SIZE))
    forms: list[Any] = [
        path,
        str(path),
        Image.fromarray(GREEN),
        GREEN,
        [path],
        [GREEN],
        (Image.open(path),),
        GREEN[None],
    ]
    for form in [*forms, preprocessed]:
        answers = classifier.predict_proba(form)
        assert (answers.dtype, answers.shape) == (np.float32, (1, 3))
        np.testing.assert_allclose(answers, [probabilities((0, 255, 0))], atol=1e-6)
        labels = classifier.predict(form)
        assert (labels.dtype, labels.tolist()) == (np.int64, [1])


def test_several_images_may_be_mixed_and_keep_their_order(classifier: Classifier, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 1)
    mixed = [folder / "blue" / "0.png", GREEN, Image.new("RGB", (5, 9), "red"), np.zeros((4, 4), np.uint8)]
    assert classifier.predict(mixed).tolist() == [2, 1, 0, 0]


def test_more_than_a_batch_is_answered_in_full(classifier: Classifier) -> None:
    numbers = np.arange(2 * BATCH_SIZE + 3)
    images = np.zeros((len(numbers), SIZE, SIZE, 3), np.uint8)
    images[numbers, :, :, numbers % 3] = 255
    assert classifier.predict(images).tolist() == (numbers % 3).tolist()


def test_no_images_give_no_answers(classifier: Classifier) -> None:
    assert classifier.predict_proba([]).shape == (0, 3)


def test_a_pillow_image_counts_as_its_file_does(classifier: Classifier, tmp_path: Path) -> None:
    """Of 16 bits the high byte counts; Pillow's own conversion would clip to white."""
    image = Image.fromarray(np.full((9, 9), 0x4001, np.uint16))
    image.save(tmp_path / "deep.png")
    answers = classifier.predict_proba([image, tmp_path / "deep.png"])
    np.testing.assert_array_equal(answers[0], answers[1])


def test_pixels_follow_the_contract(tmp_path: Path) -> None:
    """With blue first, a red image lights the network's third channel."""
    bgr = replace(CONTRACT, preprocessing=replace(RGB, channel_order="bgr"))
    with trt_cls.load(write_onnx(tmp_path / "bgr.onnx", bgr), "cpu") as classifier:
        assert classifier.predict(Image.new("RGB", (8, 8), "red")).tolist() == [2]


def test_a_gray_network_takes_color_and_gray(tmp_path: Path) -> None:
    pixels = replace(RGB, channels=1, channel_order="gray", mean=(0.0,), std=(1.0,))
    gray = replace(CONTRACT, model=replace(CONTRACT.model, input_image_size="1,16,16"), preprocessing=pixels)
    white = np.full((9, 9), 255, np.uint8)
    with trt_cls.load(write_onnx(tmp_path / "gray.onnx", gray, channels=1), "cpu") as classifier:
        for form in (white, white[:, :, None], np.stack([white] * 3, axis=2), white[None, :, :, None]):
            np.testing.assert_allclose(classifier.predict_proba(form), [probabilities((255, 0, 0))], atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        3,
        None,
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros(4, np.uint8),
    ],
)
def test_what_is_no_image_is_refused(classifier: Classifier, image: Any) -> None:
    with pytest.raises(DataError, match="expected a path, a Pillow image, a uint8 array"):
        classifier.predict([image])


def test_preprocessed_images_of_another_size_are_refused(classifier: Classifier) -> None:
    with pytest.raises(EngineError, match=r"\[1, 3, 8, 8\]; expected float32"):
        classifier.predict(np.zeros((1, 3, 8, 8), np.float32))


def test_a_broken_file_is_named(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text.jpg"):
        classifier.predict(tmp_path / "text.jpg")


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match='provider "gpu" is not known; expected one of auto, cpu'):
        trt_cls.load(write_onnx(tmp_path / "model.onnx"), "gpu")
