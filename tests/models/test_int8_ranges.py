"""How much of a range each rule keeps, against numpy, SciPy and what can be seen by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trt_cls.models.int8_ranges import BINS, LEVELS, Histogram, Method, best_of, threshold


def histogram(batches: Sequence[Any]) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.add(np.asarray(batch, np.float32))
    return found


@pytest.fixture(scope="module")
def values() -> Any:
    """Half zeros and a long tail, as behind a ReLU."""
    generator = np.random.default_rng(0)
    return np.maximum(generator.normal(size=400_000) * generator.exponential(size=400_000), 0).astype(np.float32)


def test_what_comes_later_and_larger_loses_nothing_that_came_before() -> None:
    found = histogram([[0, 0], [0.5, -1], [9, 0.25], [2]])
    assert found.counts.sum() == 7
    assert found.largest == 9
    assert 9 <= found.top <= 18
    expected = np.histogram([0, 0, 0.5, 1, 9, 0.25, 2], BINS, (0, found.top))[0]
    # A bin to the left where a value was the largest of its batch: the last bin is closed on both sides.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 1


def test_minmax_cuts_nothing(values: Any) -> None:
    assert threshold(histogram(np.split(-values, 4)), "minmax") == values.max()


def test_percentile_is_numpys_to_the_width_of_a_bin(values: Any) -> None:
    found = histogram(np.split(values, 4))
    exact = np.quantile(values, 0.9999)
    assert exact < values.max() / 1.5, "the tail is long enough to tell it from minmax"
    assert exact <= threshold(found, "percentile") <= exact + found.top / BINS * 1.01


def divergence(counts: Any, kept: int) -> float:
    """By another way than the code's: level by level, the divergence itself by SciPy."""
    stats = pytest.importorskip("scipy.stats")
    exact = counts[:kept].astype(float)
    exact[0] = exact[1]
    coarse = np.zeros(kept)
    for level in range(LEVELS):
        members = [index for index in range(kept) if index * LEVELS // kept == level and exact[index]]
        if members:
            coarse[members] = exact[members].mean()
    exact[-1] += counts[kept:].sum()
    return float(stats.entropy(exact, coarse))


def test_entropy_loses_least_information_of_all_cuts(values: Any) -> None:
    found = histogram(np.split(values, 4))
    cut = threshold(found, "entropy")
    assert cut < 0.9 * values.max(), "it does cut"
    chosen = divergence(found.counts, round(cut * BINS / found.top))
    others = [divergence(found.counts, kept) for kept in range(LEVELS, BINS + 1, 192)]
    assert chosen <= min(others) * (1 + 1e-9)


def test_entropy_ignores_a_lone_outlier_and_keeps_an_even_spread() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(size=200_000)
    assert 2 < threshold(histogram([np.append(normal, 50)]), "entropy") < 8
    assert threshold(histogram([generator.uniform(-1, 1, 200_000)]), "entropy") > 0.95


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_an_activation_that_is_always_zero_has_no_range(method: Method) -> None:
    assert threshold(histogram([[0, 0, 0]]), method) == 0


@pytest.mark.parametrize(
    ("entropy", "percentile", "minmax", "best"),
    [
        (20.0, 20.05, 19.99, "minmax"),
        (20.05, 20.0, 15.0, "percentile"),
        (20.0, 20.0, 20.0, "minmax"),
        (20.11, 20.0, 15.0, "entropy"),
        (30.0, 20.0, 29.0, "entropy"),
        (np.inf, np.inf, 29.0, "percentile"),
    ],
)
def test_of_rules_within_a_tenth_of_a_decibel_the_one_that_cuts_least_is_taken(
    entropy: float, percentile: float, minmax: float, best: Method
) -> None:
    for noise in (-0.004, 0.0, 0.004):  # what another processor's order of sums moves
        found, reported = best_of({"entropy": entropy, "percentile": percentile + noise, "minmax": minmax - noise})
        assert (found, reported.split(";")[0]) == (best, best)
