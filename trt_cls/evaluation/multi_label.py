"""Multi-label answers: which labels an image gets, thresholds, and the metrics of scikit-learn, in plain numpy.

`probabilities` is float32 [n, classes], `truth` and `given` are bool [n, classes]. Does not know: images and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import UNDECIDED, Contract
from trt_cls.data.folder import Sample
from trt_cls.evaluation.metrics import EPSILON, Counts, Probabilities
from trt_cls.text import listed

Flags = NDArray[np.bool_]
Floats64 = NDArray[np.float64]


@dataclass(frozen=True)
class LabelScores:
    """The scores of one label; 0 where nothing was to be found or given."""

    ap: float | None
    """Average precision; None: no image has the label."""
    precision: float
    recall: float
    f1: float
    support: int
    """Number of images with the label."""
    threshold: float


@dataclass(frozen=True)
class LabelMetrics:
    """The metrics of a multi-label evaluation."""

    map: float
    """Mean average precision of the labels that some image has."""
    micro_f1: float
    macro_f1: float
    """Mean F1 of all labels."""
    exact_match: float
    """Share of the images with all labels right."""
    hamming_loss: float
    """Share of the labels of all images that are wrong."""
    loss: float
    """Mean binary cross-entropy over images and labels, natural logarithm; without smoothing and penalty."""
    per_class: tuple[LabelScores, ...]


def truth_of(samples: Sequence[Sample], classes: int) -> Flags:
    """Which labels each of `samples` has."""
    truth = np.zeros((len(samples), classes), np.bool_)
    for row, sample in zip(truth, samples, strict=True):
        row[list(sample.indices)] = True
    return truth


def given_labels(probabilities: Probabilities, thresholds: Sequence[float]) -> Flags:
    """The labels that reach their threshold."""
    given: Flags = probabilities >= np.array(thresholds, np.float64)
    return given


def same_labels(given: Flags, truth: Flags, classes: Sequence[str]) -> str:
    """A sentence if all images get the same labels, although they have different ones; else empty."""
    if not (given == given[0]).all() or (truth == truth[0]).all():
        return ""
    names = listed([classes[index] for index in np.flatnonzero(given[0]).tolist()])
    return f"all {len(given):,} images get the same labels: {names or 'none'}"


def label_agreement(a: Flags, b: Flags, tied: Flags) -> float:
    """Of the labels that either side gives, the share that both give, or that are `tied`."""
    return 1 - _share(int(((a != b) & ~tied).sum()), int((a | b).sum()))


def labels_over(row: NDArray[np.float32], contract: Contract) -> tuple[tuple[str, float], ...]:
    """The labels of one image with their probabilities, likeliest first; there may be none."""
    assert contract.thresholds is not None
    given = np.flatnonzero(given_labels(row, contract.thresholds))
    ranked = given[np.argsort(-row[given], kind="stable")]
    return tuple((contract.classes[index], float(row[index])) for index in ranked)


def measure_labels(probabilities: Probabilities, truth: Flags, thresholds: Sequence[float]) -> LabelMetrics:
    """All metrics of at least one image."""
    given = given_labels(probabilities, thresholds)
    counts = label_counts(given, truth)
    aps = average_precisions(probabilities, truth)
    hits, claims, support = counts.tolist()
    return LabelMetrics(
        map=mean_average_precision(probabilities, truth),
        micro_f1=_share(2 * sum(hits), sum(claims) + sum(support)),
        macro_f1=label_macro_f1(counts),
        exact_match=float((given == truth).all(axis=1).mean()),
        hamming_loss=float((given != truth).mean()),
        loss=binary_cross_entropy(probabilities, truth),
        per_class=tuple(
            LabelScores(ap, _share(hit, claim), _share(hit, have), _share(2 * hit, claim + have), have, threshold)
            for ap, hit, claim, have, threshold in zip(aps, hits, claims, support, thresholds, strict=True)
        ),
    )


def label_counts(given: Flags, truth: Flags) -> Counts:
    """Labels given rightly, given, and to give, of each class."""
    return np.stack([(given & truth).sum(axis=0), given.sum(axis=0), truth.sum(axis=0)])


def label_macro_f1(counts: Counts) -> float:
    """The mean F1 of all labels; 0 for one that no image has or gets."""
    hits, claims, support = counts
    return float((2 * hits / np.maximum(claims + support, 1)).mean())


def binary_cross_entropy(probabilities: Probabilities, truth: Flags) -> float:
    """Mean of -ln(probability of what is true) over images and labels."""
    exact = probabilities.astype(np.float64)
    return float(-np.log(np.clip(np.where(truth, exact, 1 - exact), EPSILON, 1.0)).mean())


def mean_average_precision(probabilities: Probabilities, truth: Flags) -> float:
    """The mean over the labels that some image has; 0 without any."""
    found = [ap for ap in average_precisions(probabilities, truth) if ap is not None]
    return float(np.mean(found)) if found else 0.0


def average_precisions(probabilities: Probabilities, truth: Flags) -> list[float | None]:
    """Of each label Σ (recall - recall before) · precision over falling thresholds, as scikit-learn; None: no image."""
    found: list[float | None] = []
    for scores, right in zip(probabilities.T, truth.T, strict=True):
        if not right.any():
            found.append(None)
            continue
        _, hits, claims = _cuts(scores, right)
        found.append(float((np.diff(hits, prepend=0) / right.sum() * (hits / claims)).sum()))
    return found


def chosen_thresholds(probabilities: Probabilities, truth: Flags, precision: float) -> tuple[float, ...]:
    """A threshold for each label, between two probabilities that were seen.

    With `precision` 0 the one with the highest F1, of equals the highest; else the lowest that reaches this precision,
    or the one that comes nearest to it. 0.5 for a label that no image has.
    """
    found = []
    for scores, right in zip(probabilities.T, truth.T, strict=True):
        if not right.any():
            found.append(UNDECIDED)
            continue
        values, hits, claims = _cuts(scores, right)
        below = np.append(values[1:], 0.0)
        precisions = hits / claims
        if precision:
            reached = np.flatnonzero(precisions >= min(precision, precisions.max()))
            best = int(reached[-1])
        else:
            best = int(np.argmax(2 * hits / (claims + right.sum())))
        found.append(float(values[best] + below[best]) / 2)
    return tuple(found)


def _cuts(scores: NDArray[np.float32], right: Flags) -> tuple[Floats64, Floats64, Floats64]:
    """The different scores, falling; how many of the images down to each are right, and how many these are."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    return ranked[last], np.cumsum(right[order])[last].astype(np.float64), (last + 1).astype(np.float64)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
