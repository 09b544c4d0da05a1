"""The report of a multi-label evaluation: names of others stay text; wrong and missed labels have their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from support.tiny_models import CONTRACT
from trt_cls.data.folder import Sample, Skipped
from trt_cls.evaluation.evaluate import LabelEvaluation, Predictions, Seconds
from trt_cls.evaluation.multi_label import given_labels, measure_labels, truth_of
from trt_cls.evaluation.report.evaluation_page import label_page

CLASSES = ("cat", "<img src=x onerror=alert(1)>", '"quote" & </script><b>')


def evaluation(folder: Path) -> LabelEvaluation:
    """Four pictures: one right, one with a wrong label, one that lacks a label, one with none."""
    samples = []
    for number, labels in enumerate([(0,), (0,), (0, 1), ()]):
        Image.new("RGB", (9, 9), (60 * number, 0, 0)).save(folder / f"{number}.png")
        samples.append(Sample(folder / f"{number}.png", labels=labels))
    probabilities = np.float32([[0.9, 0.1, 0.1], [0.8, 0.97, 0.1], [0.7, 0.04, 0.2], [0.1, 0.2, 0.3]])
    thresholds = (0.5, 0.6, 0.5)
    truth, given = truth_of(samples, 3), given_labels(probabilities, thresholds)
    predictions = Predictions(tuple(samples), probabilities, (Skipped(folder / "<b>", "<i>"),), Seconds(1.0, 2.0, 3.5))
    contract = replace(CONTRACT, classes=CLASSES, task="multi", thresholds=thresholds)
    metrics = measure_labels(probabilities, truth, thresholds)
    return LabelEvaluation(contract, "onnxruntime-cpu", predictions, truth, given, metrics)


def test_names_are_escaped_and_wrong_and_missed_labels_are_shown(tmp_path: Path) -> None:
    page = label_page(evaluation(tmp_path), Path("runs/<model>.onnx"))
    assert page.count("<img src=x") == page.count("<b></td>") == page.count("<model>") == page.count("<i>") == 0
    wrong, missed = page.split("Surest wrong labels")[1].split("Most clearly missed labels")
    assert "97.0" in wrong
    assert "is cat" in wrong
    assert "4.0" in missed
    assert "data:image/png" in missed
    assert "over 2 of 3 labels" in page
    assert "several labels per image, each by its threshold" in page
