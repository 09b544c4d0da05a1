from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trt_cls.evaluation.metrics import (
    balanced_accuracy,
    calibration_error,
    class_counts,
    class_scores,
    confusion_matrix,
    cross_entropy,
    macro_f1,
    measure,
    one_answer,
    top_k_accuracy,
    top_k_indices,
)

CLASSES = 7
ATOL = 1e-6
"""Probabilities are float32."""


@pytest.fixture(params=[1, 5, 400])
def answers(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Random answers, better than chance; with few images some classes have none."""
    random = np.random.default_rng(request.param)
    labels = random.integers(0, CLASSES, request.param)
    logits = random.normal(size=(request.param, CLASSES)) + np.eye(CLASSES)[labels]
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 2, 5, CLASSES])
@pytest.mark.filterwarnings("ignore:'k'.*greater than or equal:sklearn.exceptions.UndefinedMetricWarning")
def test_top_k_is_as_in_scikit_learn(answers: Any, k: int) -> None:
    from sklearn import metrics as sklearn

    probabilities, labels = answers
    expected = sklearn.top_k_accuracy_score(labels, probabilities, k=k, labels=range(CLASSES))
    assert top_k_accuracy(probabilities, labels, k) == pytest.approx(expected)


def test_of_equal_classes_the_lower_index_is_likelier() -> None:
    probabilities = np.array([[0.3, 0.3, 0.3, 0.1]] * 4, np.float32)
    labels = np.arange(4)
    assert [top_k_accuracy(probabilities, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    shares = [
        np.mean([label in row for label, row in zip(labels, top_k_indices(probabilities, k), strict=True)])
        for k in (1, 2, 3, 4)
    ]
    assert shares == [0.25, 0.5, 0.75, 1], "the same rule"
    assert confusion_matrix(probabilities, labels)[:, 0].tolist() == [1, 1, 1, 1]


def test_loss_is_as_in_scikit_learn(answers: Any) -> None:
    from sklearn import metrics as sklearn

    probabilities, labels = answers
    exact = probabilities.astype(np.float64)
    expected = sklearn.log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=range(CLASSES))
    assert cross_entropy(probabilities, labels) == pytest.approx(expected, abs=ATOL)


def test_loss_of_a_sure_mistake_is_finite() -> None:
    loss = cross_entropy(np.array([[1, 0], [1, 0]], np.float32), np.array([1, 0]))
    assert loss == pytest.approx(-math.log(1e-7) / 2)


def test_confusion_matrix_is_as_in_scikit_learn(answers: Any) -> None:
    from sklearn import metrics as sklearn

    probabilities, labels = answers
    expected = sklearn.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(CLASSES))
    np.testing.assert_array_equal(confusion_matrix(probabilities, labels), expected)


def test_class_scores_are_as_in_scikit_learn(answers: Any) -> None:
    from sklearn import metrics as sklearn

    probabilities, labels = answers
    expected = sklearn.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(CLASSES), zero_division=0
    )
    scores = class_scores(confusion_matrix(probabilities, labels))
    found = [[getattr(score, name) for score in scores] for name in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(found, expected)


def test_calibration_error_is_that_of_its_definition(answers: Any) -> None:
    """Bins of (low, high], each with its share of |accuracy - mean confidence|."""
    probabilities, labels = answers
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(probabilities, labels) == pytest.approx(expected, abs=ATOL)


@pytest.mark.filterwarnings("ignore:y_pred contains classes:UserWarning", "ignore:A single label:UserWarning")
def test_means_over_classes_are_as_in_scikit_learn(answers: Any) -> None:
    from sklearn import metrics as sklearn

    probabilities, labels = answers
    guesses = probabilities.argmax(axis=1)
    counts = class_counts(guesses, labels, CLASSES)
    np.testing.assert_array_equal(counts, measure(probabilities, labels, 1).counts)
    assert balanced_accuracy(counts) == pytest.approx(sklearn.balanced_accuracy_score(labels, guesses), abs=1e-9)
    assert macro_f1(counts) == pytest.approx(sklearn.f1_score(labels, guesses, average="macro"), abs=1e-9)


def test_a_network_that_gives_one_class_for_everything_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 20 + [2] * 10)
    found = one_answer(class_counts(np.full(40, 2), labels, 3), ("bird", "cat", "object"))
    assert found == "all 40 answers are object; the majority class alone would score 50 %"
    assert not one_answer(class_counts(labels, labels, 3), ("bird", "cat", "object"))
    only = np.full(40, 2)
    assert not one_answer(class_counts(only, only, 3), ("bird", "cat", "object")), "the images are of one class"


def test_calibration_error_by_hand() -> None:
    """Two answers at .9, one right: |.5 - .9|; two at .6, both right: |1 - .6|."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32)
    assert calibration_error(probabilities, np.array([0, 1, 0, 1])) == pytest.approx(0.4)
    assert calibration_error(np.eye(2, dtype=np.float32), np.array([0, 1])) == 0


def test_measure_puts_each_figure_in_its_place() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]], np.float32)
    found = measure(probabilities, np.array([0, 1, 0]), 2)
    assert (found.top_1_accuracy, found.top_k_accuracy) == (pytest.approx(1 / 3), 1)
    assert found.loss == pytest.approx(-(math.log(0.7) + math.log(0.4) + math.log(0.2)) / 3)
    assert found.confusion_matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert [score.f1 for score in found.per_class] == [0.5, 0, 0]
    assert found.ece == pytest.approx((0.3 + 0.5 + 0.6) / 3)
