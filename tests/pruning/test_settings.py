"""Promises that hold for every combination of settings, on networks of each kind, and on numbers drawn at random."""

from __future__ import annotations

import itertools
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support.calibration import calibrate
from support.reference_weights import fill
from support.zeroed import answer_with_zeroed
from trt_cls.cli import main
from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint, widths
from trt_cls.models.network import Network
from trt_cls.pruning.channel_graph import ChannelGraph, Group, WeightedLayer
from trt_cls.pruning.prune import prune_network
from trt_cls.pruning.selection import Criteria, kept_filters, scored
from trt_cls.pruning.surgery import filter_norms, multiply_adds_left, pruned_network
from trt_cls.pruning.trace import channel_graph
from trt_cls.spec.experiment import ModelConfig

SHAPE = (3, 32, 32)
ARCHS = ("resnet", "mobilenet_v2", "squeezenet", "cspdarknet_tiny")
"""Residual adds, depthwise convolutions, concatenations, channel splits."""
EVEN_MORE = ("googlenet", "mobilenet_v1", "alexnet", "vgg", "darknet", "cspdarknet", "efficientnet_b0")
EQUALIZATIONS = ("union", "intersection", "arithmetic_mean", "geometric_mean")


@cache
def network(arch: str) -> tuple[Network, ChannelGraph]:
    depths = {"resnet": 10, "vgg": 16, "darknet": 19, "cspdarknet": 19}
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, n_layers=depths.get(arch, 18), input_image_size="3,32,32", use_batch_norm=True)
    module = fill(build(config, 10))
    calibrate(module, torch.randn(4, *SHAPE))
    return module, channel_graph(module, SHAPE)


def drawn(arch: str, number: int) -> Criteria:
    """Settings that differ from run to run; one layer of the network, the first of a group, is excluded at times."""
    rng = np.random.default_rng([number, *arch.encode()])
    _, graph = network(arch)
    prunable = [group.layers[0] for group in graph.groups if not group.unprunable]
    return Criteria(
        threshold=float(rng.choice([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])),
        granularity=int(rng.choice([1, 3, 8, 32])),
        min_filters=int(rng.choice([1, 5, 16, 1000])),
        normalizer=rng.choice(["max", "L2"]),
        equalization=rng.choice(EQUALIZATIONS),
        excluded=tuple(rng.choice(prunable, int(rng.integers(0, 3)), replace=False)),
    )


CASES = [
    pytest.param(arch, number, marks=() if number < 3 and arch in ARCHS else pytest.mark.slow)
    for arch, number in itertools.product(ARCHS + EVEN_MORE, range(6))
]


@pytest.mark.parametrize(("arch", "number"), CASES)
def test_settings_are_kept_to(arch: str, number: int) -> None:
    module, graph = network(arch)
    criteria = drawn(arch, number)
    kept = kept_filters(graph, scored(graph, filter_norms(module, graph), criteria), criteria)
    assert kept[module.head].tolist() == list(range(10))
    for group in graph.groups:
        filters = kept[group.layers[0]]
        count, depth = len(filters), graph.layers[group.layers[0]].filters
        assert all(np.array_equal(kept[name], filters) for name in group.layers)
        assert np.array_equal(np.unique(filters), filters)
        assert count == depth or count % criteria.granularity == 0
        assert count >= min(criteria.min_filters, depth)
        if group.unprunable or set(criteria.excluded) & set(group.layers):
            assert count == depth
    pruned = pruned_network(module, graph, kept)
    assert widths(pruned.state_dict()) == {name: len(filters) for name, filters in kept.items()}
    images = torch.randn(2, *SHAPE, dtype=torch.double)
    with torch.no_grad():
        wanted = answer_with_zeroed(deepcopy(module).double(), kept, images)
        torch.testing.assert_close(pruned.double()(images), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalizer", ["max", "L2"])
@pytest.mark.parametrize("equalization", EQUALIZATIONS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_higher_threshold_never_keeps_more(arch: str, equalization: Any, normalizer: Any) -> None:
    module, graph = network(arch)
    norms = filter_norms(module, graph)
    before = {name: set(range(layer.filters)) for name, layer in graph.layers.items()}
    for threshold in (0.0, 0.3, 0.6, 1.0, 5.0, 1e9):
        criteria = Criteria(threshold, granularity=1, min_filters=1, normalizer=normalizer, equalization=equalization)
        kept = kept_filters(graph, scored(graph, norms, criteria), criteria)
        after = {name: set(filters.tolist()) for name, filters in kept.items()}
        assert all(after[name] <= before[name] for name in after)
        if threshold == 0:
            assert after == before, "no filter of these networks is all zeros"
        before = after
    assert all(len(before[name]) == 1 for group in graph.groups if not group.unprunable for name in group.layers)


@pytest.mark.parametrize("target", [0.9, 0.5, 0.25])
@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("arch", ["resnet", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS[1:])])
def test_a_target_is_missed_by_less_than_one_step(arch: str, granularity: int, target: float) -> None:
    """A step is what the next lower score gives back: the filters of one score in one group, and what rounds up."""
    module, graph = network(arch)
    criteria = Criteria(granularity=granularity, min_filters=4)
    try:
        found = prune_network(module, SHAPE, criteria, target=target)
    except RequestError:
        least = prune_network(module, SHAPE, Criteria(1e9, granularity, min_filters=4)).multiply_adds.ratio
        assert least > target
        return
    groups = scored(graph, filter_norms(module, graph), criteria)
    scores = np.unique(np.concatenate([group.scores for group in groups]))
    lower = max(scores[scores < np.float32(found.threshold)], default=0.0)
    looser = Criteria(float(lower), granularity, min_filters=4)
    left = multiply_adds_left(graph, kept_filters(graph, groups, looser)) / found.multiply_adds.before
    assert found.multiply_adds.ratio <= target < left
    assert left - found.multiply_adds.ratio < (0.02 if granularity == 1 else 0.1)


numbers = st.just(0.0) | st.floats(min_value=2**-20, max_value=128, width=32)
"""Far from where float32 ends."""


@settings(deadline=None, max_examples=200)
@given(
    layers=st.integers(1, 3).flatmap(
        lambda count: st.integers(1, 12).flatmap(
            lambda filters: st.lists(
                st.lists(numbers, min_size=filters, max_size=filters), min_size=count, max_size=count
            )
        )
    ),
    threshold=st.floats(min_value=0, max_value=3),
    granularity=st.integers(1, 16),
    min_filters=st.integers(1, 16),
    normalizer=st.sampled_from(["max", "L2"]),
    equalization=st.sampled_from(EQUALIZATIONS),
)
def test_the_filters_of_a_group_are_those_of_taos_rules(
    layers: list[list[float]], threshold: float, granularity: int, min_filters: int, normalizer: Any, equalization: Any
) -> None:
    """The rules written down again, filter by filter, in Python's own numbers."""
    depth, names = len(layers[0]), [f"layer {number}" for number in range(len(layers))]
    graph = ChannelGraph(
        {name: WeightedLayer(name, depth, (), fan_in=1, kernel=1, positions=1) for name in names},
        (), (Group(tuple(names), ""),), 0,
    )  # fmt: skip
    norms = {name: np.float32(values) for name, values in zip(names, layers, strict=True)}
    criteria = Criteria(threshold, granularity, min_filters, normalizer, equalization)
    (group,) = scored(graph, norms, criteria)
    np.testing.assert_allclose(group.scores, reference_scores(layers, normalizer, equalization), rtol=2e-5, atol=1e-30)
    found = kept_filters(graph, [group], criteria)[names[0]]
    passing = int((group.scores > threshold).sum())
    count = max(passing, min(min_filters, depth))
    count = min(count + -count % granularity, depth)
    assert len(found) == count
    gone = np.setdiff1d(np.arange(depth), found)
    assert not len(gone) or group.scores[found].min() >= group.scores[gone].max()


def reference_scores(layers: list[list[float]], normalizer: str, equalization: str) -> list[float]:
    scaled = []
    for values in layers:
        scale = max(values) if normalizer == "max" else sum(value**2 for value in values) ** 0.5 / len(values)
        scaled.append([value / scale if scale else 0.0 for value in values])
    merge = {
        "union": max,
        "intersection": min,
        "arithmetic_mean": lambda column: sum(column) / len(column),
        "geometric_mean": lambda column: float(np.prod(column) ** (1 / len(column))),
    }[equalization]
    return [merge(column) for column in zip(*scaled, strict=True)]


def test_a_dry_run_says_what_pruning_then_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = network("squeezenet")
    config = ModelConfig(arch="squeezenet", input_image_size="3,32,32", use_batch_norm=True)
    pixels = Preprocessing(*SHAPE, "none", "bilinear", "rgb", 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    source, output = tmp_path / "whole.safetensors", tmp_path / "pruned.safetensors"
    save_checkpoint(source, module, Contract(config, pixels, tuple("abcdefghij")))
    for flags in (
        ["-pth", "0.5", "-eq", "geometric_mean", "-pg", "4", "-nf", "4", "-el", "conv1", "fire2_squeeze_conv"],
        ["--target-flops", "0.4", "-n", "L2"],
    ):
        assert main(["prune", "-m", str(source), "--dry-run", *flags]) == 0
        foretold = capsys.readouterr().out
        assert not output.exists()
        assert main(["prune", "-m", str(source), "-o", str(output), "--no-latency", *flags]) == 0
        done = capsys.readouterr().out
        assert done.startswith(foretold)
        table = {
            line.split()[0]: int(line.split()[3]) for line in foretold.splitlines() if "→" in line and "(" not in line
        }
        pruned = load_checkpoint(output).module
        assert table == widths(pruned.state_dict())
        assert f"→ {total(pruned):,}" in foretold
        output.unlink()


def total(module: nn.Module) -> int:
    """Numbers that a network consists of; statistics count, the count of batches does not."""
    return sum(tensor.numel() for name, tensor in module.state_dict().items() if not name.endswith("batches_tracked"))
