from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trt_cls.errors import ArtefactError, RequestError
from trt_cls.pruning.channel_graph import ChannelGraph, Group, WeightedLayer
from trt_cls.pruning.selection import Criteria, kept_filters, scored

NORMS = {
    "one": np.float32([4, 1, 2, 3, 0]),
    "other": np.float32([1, 10, 5, 0, 2]),
    "last": np.float32([1, 2, 3, 4, 5]),
}


def layer(name: str) -> WeightedLayer:
    return WeightedLayer(name, filters=5, inputs=(), fan_in=3, kernel=9, positions=1)


GRAPH = ChannelGraph(
    layers={name: layer(name) for name in NORMS},
    norms=(),
    groups=(Group(("one", "other"), ""), Group(("last",), "computes the logits")),
    other_multiply_adds=0,
)


def kept(**given: Any) -> list[int]:
    """The filters that stay of the two layers that keep the same; no other rule interferes unless it is given."""
    criteria = Criteria(**({"granularity": 1, "min_filters": 1} | given))
    found = kept_filters(GRAPH, scored(GRAPH, NORMS, criteria), criteria)
    assert found["one"].tolist() == found["other"].tolist()
    assert found["last"].tolist() == [0, 1, 2, 3, 4]
    return [int(index) for index in found["one"]]


@pytest.mark.parametrize(
    ("equalization", "threshold", "expected"),
    [
        ("union", 0.45, [0, 1, 2, 3]),  # 1, 1, .5, .75, .2
        ("union", 0.5, [0, 1, 3]),  # at the threshold goes
        ("intersection", 0.15, [1, 2]),  # .1, .25, .5, 0, 0
        ("arithmetic_mean", 0.5, [0, 1]),  # .55, .625, .5, .375, .1
        ("geometric_mean", 0.4, [1, 2]),  # .32, .5, .5, 0, 0
    ],
)
def test_the_norms_of_two_layers_become_one_score(equalization: Any, threshold: float, expected: list[int]) -> None:
    assert kept(equalization=equalization, threshold=threshold) == expected


def test_the_l2_normalizer_is_relative_to_the_root_of_the_sum_of_squares() -> None:
    # one: sqrt(30) / 5 = 1.095 for each unit; other: sqrt(130) / 5 = 2.28
    assert kept(normalizer="L2", threshold=2.6) == [0, 1, 3]  # 3.65, 4.39, 2.19, 2.74, .88
    assert kept(normalizer="L2", threshold=2.0) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({"threshold": 0.6}, 3),
        ({"threshold": 0.6, "granularity": 2}, 4),
        ({"threshold": 0.6, "granularity": 8}, 5),  # not more than there are
        ({"threshold": 2.0}, 1),
        ({"threshold": 2.0, "min_filters": 3}, 3),
        ({"threshold": 2.0, "min_filters": 3, "granularity": 4}, 4),
        ({"threshold": 2.0, "min_filters": 16}, 5),
    ],
)
def test_granularity_rounds_up_and_the_minimum_stays(rules: dict[str, Any], count: int) -> None:
    assert len(kept(**rules)) == count


def test_the_best_filters_fill_up() -> None:
    assert kept(threshold=0.6, granularity=4) == [0, 1, 2, 3]
    assert kept(threshold=2.0, min_filters=2) == [0, 1]


def test_one_excluded_layer_keeps_its_whole_group() -> None:
    assert kept(threshold=0.6, excluded=("other",)) == [0, 1, 2, 3, 4]


def test_an_excluded_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match=r'-el "othr".*did you mean "other"'):
        kept(excluded=("othr",))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(broken: float) -> None:
    with pytest.raises(ArtefactError, match="layer one has weights that are not finite"):
        scored(GRAPH, {**NORMS, "one": np.float32([1, broken, 1, 1, 1])}, Criteria())


def test_a_layer_of_zeros_is_no_number_by_zero() -> None:
    norms = {**NORMS, "one": np.zeros(5, np.float32), "other": np.zeros(5, np.float32)}
    criteria = Criteria(threshold=0.1, min_filters=2, granularity=1, equalization="geometric_mean")
    assert kept_filters(GRAPH, scored(GRAPH, norms, criteria), criteria)["one"].tolist() == [0, 1]
