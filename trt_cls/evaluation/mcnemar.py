"""Whether one of two classifiers is better, by the images that only one of them gets right."""

from __future__ import annotations


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test: a fair coin for each image that only one of the two gets right."""
    flips, fewer = only_a + only_b, min(only_a, only_b)
    ways = total = 1
    for heads in range(fewer):
        ways = ways * (flips - heads) // (heads + 1)
        total += ways
    return min(1.0, 2 * total / (1 << flips))
