"""Multi-label metrics and thresholds, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from trt_cls.evaluation.multi_label import chosen_thresholds, given_labels, measure_labels

EXACT = {"rel": 0, "abs": 1e-9}


def answers(seed: int, images: int = 200, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and truth; the last label has no image, the one before it all."""
    random = np.random.default_rng(seed)
    truth = random.random((images, classes)) < 0.3
    truth[:, -1], truth[:, -2] = False, True
    probabilities = np.clip(0.3 * truth + 0.8 * random.random((images, classes)), 0, 1)
    return np.round(probabilities, 2).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_that_of_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    probabilities, truth = answers(seed)
    thresholds = (0.2, 0.5, 0.5, 0.99, 0.5, 2.0)
    given = given_labels(probabilities, thresholds)
    found = measure_labels(probabilities, truth, thresholds)
    aps = [sklearn.average_precision_score(truth[:, k], probabilities[:, k]) for k in range(5)]
    assert [scores.ap for scores in found.per_class] == [*(pytest.approx(ap, **EXACT) for ap in aps), None]
    assert found.map == pytest.approx(np.mean(aps), **EXACT)
    for average in ("micro", "macro"):
        expected = sklearn.f1_score(truth, given, average=average, zero_division=0)
        assert getattr(found, f"{average}_f1") == pytest.approx(expected, **EXACT)
    assert found.exact_match == pytest.approx(sklearn.accuracy_score(truth, given), **EXACT)
    assert found.hamming_loss == pytest.approx(sklearn.hamming_loss(truth, given), **EXACT)
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    losses = [sklearn.log_loss(truth[:, k], clipped[:, k], labels=[False, True]) for k in range(6)]
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-6)
    scores = sklearn.precision_recall_fscore_support(truth, given, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        assert [getattr(one, name) for one in found.per_class] == pytest.approx(list(values), **EXACT)


def test_thresholds_have_the_highest_f1_that_scikit_learn_finds() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    probabilities, truth = answers(7)
    chosen = chosen_thresholds(probabilities, truth, 0.0)
    assert chosen[-1] == 0.5
    for k in (0, 4):
        best = max(sklearn.f1_score(truth[:, k], probabilities[:, k] >= cut) for cut in set(probabilities[:, k]))
        assert sklearn.f1_score(truth[:, k], probabilities[:, k] >= chosen[k]) == pytest.approx(best, **EXACT)
        assert chosen[k] not in probabilities[:, k]  # rounding changes no label


@pytest.mark.parametrize("precision", [0.6, 0.9, 1.0])
def test_thresholds_reach_a_precision_with_the_highest_recall(precision: float) -> None:
    probabilities, truth = answers(8)
    chosen = chosen_thresholds(probabilities, truth, precision)
    for k in range(4):
        found = {
            cut: (truth[:, k] & (probabilities[:, k] >= cut)).sum() / (probabilities[:, k] >= cut).sum()
            for cut in set(probabilities[:, k])
        }
        reached = [cut for cut, share in found.items() if share >= min(precision, max(found.values()))]
        assert (probabilities[:, k] >= chosen[k]).sum() == (probabilities[:, k] >= min(reached)).sum()
