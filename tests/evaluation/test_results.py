from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.tiny_models import CONTRACT
from trt_cls.data.folder import Sample
from trt_cls.data.stream import Skipped
from trt_cls.evaluation.evaluate import Evaluation, Predictions, Seconds
from trt_cls.evaluation.metrics import measure
from trt_cls.evaluation.results import confusion_table, evaluation_table, report_table, skipped_lines


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("a very long name of a class", "b", "ä")])
def test_report_reads_as_scikit_learn_prints_it(classes: tuple[str, ...]) -> None:
    from sklearn.metrics import classification_report

    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 50)  # the third class has no image
    probabilities = random.random((50, 3)).astype(np.float32)
    metrics = measure(probabilities, labels, 1)
    expected = classification_report(
        labels, probabilities.argmax(axis=1), labels=range(3), target_names=classes, zero_division=0
    )
    found = report_table(metrics.per_class, classes, metrics.top_1_accuracy)
    assert [line.split() for line in found.splitlines()] == [line.split() for line in expected.splitlines()]
    assert len({len(line) for line in found.splitlines() if line}) == 1


def test_confusion_matrix_names_its_rows() -> None:
    assert confusion_table([[10, 0], [3, 200]], ("cat", "mouse")) == "  cat   10   0\nmouse    3 200"


def test_skipped_images_are_listed_with_their_reason() -> None:
    assert skipped_lines([Skipped(Path("a.jpg"), "no image")]) == "skipped: a.jpg: no image\n"
    assert skipped_lines([]) == ""


def test_table_shows_the_figures() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32)
    predictions = Predictions((Sample(Path("a"), 0), Sample(Path("b"), 1)), probabilities, (), Seconds(0.1, 0.3, 0.5))
    table = evaluation_table(
        Evaluation(CONTRACT, "onnxruntime-cpu", predictions, 2, measure(probabilities, np.array([0, 1]), 2))
    )
    for line in (
        "images             2, 0 skipped",
        "top-1 accuracy     0.5000",
        "top-2 accuracy     1.0000",
        "balanced accuracy  0.5000",
        "macro F1           0.3333",  # 2/3 and 0
        "loss               0.6365",  # -(ln .7 + ln .4) / 2
        "images/s           4 (onnxruntime-cpu, fp32)",
        "Confusion Matrix (rows: truth)",
        "Classification Report",
    ):
        assert line in table.splitlines()
