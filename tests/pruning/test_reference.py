"""NVIDIA's own pruning of the same weights."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.records import config, label
from support.reference_weights import fill, images
from support.shared_data import tao_records
from trt_cls.models import build
from trt_cls.models.network import count_parameters
from trt_cls.pruning.channel_graph import ChannelGraph
from trt_cls.pruning.selection import Criteria, Scored, kept_filters, scored
from trt_cls.pruning.surgery import filter_norms, pruned_network
from trt_cls.pruning.trace import channel_graph

RECORDS = tao_records("prune_reference.json")
QUICK = {"resnet10", "mobilenet_v2", "squeezenet", "cspdarknet_tiny"}


@cache
def network(number: int) -> tuple[nn.Module, ChannelGraph]:
    """The network of a record, and its graph."""
    record = RECORDS[number]
    module = fill(build(config(record), record["nclasses"], tao_pooling=True))
    return module, channel_graph(module, tuple(record["input_size"]))


def same_network(record: dict[str, Any]) -> int:
    """The number of the first record with the same network."""
    keys = ("arch", "n_layers", "options", "input_size", "nclasses")
    return next(number for number, other in enumerate(RECORDS) if all(other[key] == record[key] for key in keys))


def criteria(record: dict[str, Any]) -> Criteria:
    settings = record["settings"]
    return Criteria(
        threshold=settings["threshold"],
        granularity=settings["granularity"],
        min_filters=settings["min_num_filters"],
        normalizer=settings["normalizer"],
        equalization=settings["equalization_criterion"],
    )


def marked(record: dict[str, Any]) -> Any:
    slow = f"{record['arch']}{record['n_layers'] or ''}" not in QUICK
    settings = record["settings"]
    name = f"{label(record)}-{settings['threshold']}-{settings['normalizer']}-{settings['equalization_criterion']}"
    return pytest.param(record, id=name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("record", [marked(record) for record in RECORDS])
def test_the_same_filters_stay(record: dict[str, Any]) -> None:
    module, graph = network(same_network(record))
    groups = scored(graph, filter_norms(module, graph), criteria(record))
    kept = kept_filters(graph, groups, criteria(record))
    assert {name: len(filters) for name, filters in kept.items()} == record["filters_after"]
    tied = {layer: group for group in groups if has_tie(group, kept) for layer in group.group.layers}
    for name, filters in kept.items():
        if name in tied:
            assert record["retained_sha1"][name] in {sha1(others) for others in as_good(tied[name], filters)}
        else:
            assert sha1(filters) == record["retained_sha1"][name], name
    assert not tied or record["settings"]["threshold"] > 1, "only where nothing passes the threshold do ties decide"
    for name, filters in record.get("retained_idx", {}).items():
        assert kept[name].tolist() == filters
    pruned = pruned_network(module, graph, kept)
    assert count_parameters(pruned).total == record["params_after"]
    if "probs_after" in record:
        with torch.no_grad():
            found = pruned(torch.from_numpy(images(tuple(record["input_size"])))).softmax(1)
        np.testing.assert_allclose(found.numpy(), record["probs_after"], rtol=0, atol=1e-5)


def sha1(filters: np.ndarray) -> str:
    return hashlib.sha1(np.sort(filters).astype("<i4").tobytes()).hexdigest()[:12]


def has_tie(group: Scored, kept: dict[str, np.ndarray]) -> bool:
    """Whether the last filter that stays is no better than the first that goes."""
    filters = kept[group.group.layers[0]]
    left_out = np.setdiff1d(np.arange(len(group.scores)), filters)
    return bool(len(left_out)) and group.scores[filters].min() == group.scores[left_out].max()


def as_good(group: Scored, filters: np.ndarray) -> list[np.ndarray]:
    """All choices that differ in filters of the same score alone."""
    lowest = group.scores[filters].min()
    sure = np.flatnonzero(group.scores > lowest)
    ties = np.flatnonzero(group.scores == lowest)
    return [np.concatenate([sure, choice]).astype(int) for choice in combinations(ties, len(filters) - len(sure))]
