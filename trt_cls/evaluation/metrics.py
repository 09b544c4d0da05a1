"""Metrics of a classifier, and McNemar's test of two, in plain numpy: scikit-learn is too heavy for a Jetson.

`probabilities` is float32 [n, classes] and `labels` int64 [n], with n ≥ 1. Does not know: images, models and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]
"""[3, classes]: right answers, answers, and images of each class."""

EPSILON = 1e-7
"""Lowest probability in the loss, as in Keras: a probability of 0 would make the mean infinite."""
BINS = 15
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class; 0 if there is no image to count."""

    precision: float
    recall: float
    f1: float
    support: int
    """Number of images of the class."""


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose highest probability is in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean highest probability; 0 without images."""
    accuracy: float
    """0 without images."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of an evaluation."""

    top_1_accuracy: float
    top_k_accuracy: float
    loss: float
    """Mean cross-entropy, natural logarithm; without weight penalty and label smoothing."""
    confusion_matrix: NDArray[np.int64]
    """[truth, prediction]: numbers of images."""
    per_class: tuple[ClassScores, ...]
    ece: float
    """Expected calibration error, 0 to 1."""

    @property
    def counts(self) -> Counts:
        """Per class, from the confusion matrix."""
        matrix = self.confusion_matrix
        return np.stack([np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)])


def measure(probabilities: Probabilities, labels: Labels, top_k: int) -> Metrics:
    """All metrics."""
    matrix = confusion_matrix(probabilities, labels)
    return Metrics(
        top_1_accuracy=top_k_accuracy(probabilities, labels, 1),
        top_k_accuracy=top_k_accuracy(probabilities, labels, top_k),
        loss=cross_entropy(probabilities, labels),
        confusion_matrix=matrix,
        per_class=class_scores(matrix),
        ece=calibration_error(probabilities, labels),
    )


def top_k_indices(probabilities: Probabilities, k: int) -> NDArray[np.int64]:
    """Indices [..., k] of the likeliest classes (at most all), likeliest first; of equal classes the lower index first.

    `top_k_accuracy` below and every `argmax` follow the same rule for ties.
    """
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :k]


def top_k_accuracy(probabilities: Probabilities, labels: Labels, k: int) -> float:
    """The share of labels among the k likeliest classes, with the ties of `top_k_indices`, without sorting."""
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(probabilities.shape[1]) < labels[:, None]
    likelier = (probabilities > of_label) | ((probabilities == of_label) & lower_index)
    return float((likelier.sum(axis=1) < k).mean())


def cross_entropy(probabilities: Probabilities, labels: Labels) -> float:
    """Mean of -ln(probability of the label)."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(of_label, EPSILON, 1.0)).mean())


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Counts of images [truth, prediction]."""
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_scores(matrix: NDArray[np.int64]) -> tuple[ClassScores, ...]:
    """Precision, recall, F1 and support of each class of a confusion matrix."""
    right, predicted, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    return tuple(
        ClassScores(
            precision=_share(int(hits), int(claims)),
            recall=_share(int(hits), int(images)),
            f1=_share(2 * int(hits), int(claims) + int(images)),
            support=int(images),
        )
        for hits, claims, images in zip(right, predicted, support, strict=True)
    )


def class_counts(answers: Labels, labels: Labels, classes: int) -> Counts:
    """Counts of `answers` [n] to images of the classes `labels` [n]; n may be 0."""
    counted = (answers[answers == labels], answers, labels)
    return np.stack([np.bincount(found, minlength=classes) for found in counted])


def recalls(counts: Counts) -> NDArray[np.float64]:
    """The recall of each class [classes]; 0 without images."""
    right, _, images = counts
    shares: NDArray[np.float64] = right / np.maximum(images, 1)
    return shares


def balanced_accuracy(counts: Counts) -> float:
    """The mean recall of the classes that have images."""
    return float(recalls(counts)[counts[2] > 0].mean())


def macro_f1(counts: Counts) -> float:
    """The mean F1 of the classes that have images or answers."""
    right, answers, images = counts
    found = answers + images > 0
    return float((2 * right[found] / (answers + images)[found]).mean())


def one_answer(counts: Counts, classes: Sequence[str]) -> str:
    """A sentence if all answers are one class, although images of several were seen; else empty."""
    _, answers, images = counts
    if np.count_nonzero(answers) != 1 or np.count_nonzero(images) < 2:
        return ""
    share = 100 * images.max() / images.sum()
    return (
        f"all {answers.sum():,} answers are {classes[answers.argmax()]}; "
        f"the majority class alone would score {share:.3g} %"
    )


def calibration_bins(probabilities: Probabilities, labels: Labels) -> tuple[CalibrationBin, ...]:
    """Confidence and accuracy in 15 bins of equal width."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    filled = np.maximum(images, 1)
    mean_confidence = np.bincount(bins, weights=confidence, minlength=BINS) / filled
    accuracy = np.bincount(bins, weights=right, minlength=BINS) / filled
    return tuple(
        CalibrationBin(index / BINS, (index + 1) / BINS, int(count), float(mean), float(share))
        for index, (count, mean, share) in enumerate(zip(images, mean_confidence, accuracy, strict=True))
    )


def calibration_error(probabilities: Probabilities, labels: Labels) -> float:
    """Expected calibration error over those bins (Guo et al. 2017, equation 3)."""
    gaps = (abs(found.accuracy - found.confidence) * found.images for found in calibration_bins(probabilities, labels))
    return sum(gaps) / len(labels)


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of at least one image (Wilson 1927)."""
    share, spread = hits / images, Z_95**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test, for numbers of images that only one of two models gets right."""
    flips, fewer = only_a + only_b, min(only_a, only_b)
    ways = total = 1
    for heads in range(fewer):
        ways = ways * (flips - heads) // (heads + 1)
        total += ways
    return min(1.0, 2 * total / (1 << flips))
