"""Pruning from checkpoint to checkpoint: choose, cut, hold against the network itself, measure, write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trt_cls.artefacts.model_file import check_model_file
from trt_cls.errors import ArtefactError, RequestError, require
from trt_cls.files import results_folder
from trt_cls.pruning.graph import ChannelGraph, channel_graph
from trt_cls.pruning.selection import Criteria, Filters, Scored, kept_filters, scored
from trt_cls.pruning.surgery import filter_norms, multiply_adds, pruned_network, require_equal

if TYPE_CHECKING:
    from torch import nn

    from trt_cls.contract import Contract

SUFFIX = ".safetensors"


class Change(NamedTuple):
    """A number before and after pruning."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """What is left."""
        return self.after / self.before


@dataclass(frozen=True)
class Pruned:
    """A pruned network and what became smaller."""

    module: nn.Module
    threshold: float
    """What was asked for, or what leaves the share of multiply-adds that was."""
    filters: Mapping[str, tuple[int, int]]
    """Of each layer, before and after."""
    whole: Mapping[str, str]
    """Layers from which nothing could be removed, and why."""
    parameters: Change
    """With the statistics of batch normalisation, as TAO counts."""
    multiply_adds: Change
    """Of convolutions and dense layers, for one image."""
    difference: float
    """Largest, between its logits and those of the network with the same channels zeroed."""
    latency: Change | None = None
    """Median seconds for one image in ONNX Runtime on the CPU; None where it was not measured."""


def prune(
    model: Path,
    output: Path | None,
    criteria: Criteria | None = None,
    *,
    target: float | None = None,
    latency: bool = False,
) -> Pruned:
    """Prunes the checkpoint `model` and writes what is left to `output`, where one is given.

    `target` is the share of multiply-adds that may be left; it takes the place of the threshold of `criteria`.

    Raises:
        RequestError: file names, excluded layers or `target` are wrong, or `target` can't be reached.
        TrtClsError: the network can't be followed, or what is left does not answer as it should.
        MissingDependency: torch is missing, or ONNX Runtime where the latency is asked for.
    """
    criteria = criteria or Criteria()
    _check_request(model, output, criteria.threshold, target)
    require("torch", "pruning", "train")
    from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(model)
    contract = checkpoint.contract
    if contract.precision == "int8":
        raise ArtefactError(
            f"{model} was trained for INT8, with ranges for all of its channels; expected a network in fp32; prune "
            "that one, retrain it, and then for INT8"
        )
    pruned = prune_network(checkpoint.module, contract.preprocessing.input_shape, criteria, target=target)
    if latency:
        pruned = replace(pruned, latency=_latency(checkpoint.module, pruned.module, contract))
    if output is not None:
        results_folder(output.parent)
        save_checkpoint(output, pruned.module, contract)
    return pruned


def prune_network(
    module: nn.Module, input_shape: tuple[int, int, int], criteria: Criteria, *, target: float | None = None
) -> Pruned:
    """A smaller network of the filters of `module`, which is in eval mode and stays as it is; see `prune`."""
    from trt_cls.models.network import count_parameters

    graph = channel_graph(module, input_shape)
    groups = scored(graph, filter_norms(module, graph), criteria)
    if target is not None:
        criteria = replace(criteria, threshold=_threshold(graph, groups, criteria, target))
    kept = kept_filters(graph, groups, criteria)
    smaller = pruned_network(module, graph, kept)
    everything = {name: np.arange(layer.filters) for name, layer in graph.layers.items()}
    return Pruned(
        module=smaller,
        threshold=criteria.threshold,
        filters={name: (layer.filters, len(kept[name])) for name, layer in graph.layers.items()},
        whole=_whole(graph, criteria.excluded),
        parameters=Change(count_parameters(module).total, count_parameters(smaller).total),
        multiply_adds=Change(multiply_adds(graph, everything), multiply_adds(graph, kept)),
        difference=require_equal(smaller, module, graph, kept, input_shape),
    )


def _whole(graph: ChannelGraph, excluded: Sequence[str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for group in graph.groups:
        if reason := group.whole or ("excluded" if set(excluded).intersection(group.layers) else ""):
            reasons.update(dict.fromkeys(group.layers, reason))
    return reasons


def _threshold(graph: ChannelGraph, groups: Sequence[Scored], criteria: Criteria, target: float) -> float:
    """The lowest threshold that leaves at most `target` of the multiply-adds.

    Only the scores themselves need be tried: between two of them the same filters stay.
    """
    everything = {name: np.arange(layer.filters) for name, layer in graph.layers.items()}
    allowed = target * multiply_adds(graph, everything)

    def left(threshold: float) -> int:
        kept: dict[str, Filters] = kept_filters(graph, groups, replace(criteria, threshold=threshold))
        return multiply_adds(graph, kept)

    scores = np.unique(np.concatenate([np.zeros(1, np.float32), *(group.scores for group in groups)]))
    least = left(float(scores[-1]))
    if least > allowed:
        raise RequestError(
            f"--target-flops {target:g}: {least / multiply_adds(graph, everything):.3g} of the multiply-adds are left "
            f"when every layer is at its minimum of {criteria.min_filters} filters; expected a target from there to 1; "
            "raise it, or lower -nf and -pg"
        )
    low, high = 0, len(scores) - 1
    while low < high:
        middle = (low + high) // 2
        if left(float(scores[middle])) <= allowed:
            high = middle
        else:
            low = middle + 1
    return float(scores[low])


def _latency(module: nn.Module, smaller: nn.Module, contract: Contract) -> Change:
    from trt_cls.pruning.latency import latencies

    return Change(*latencies([module, smaller], contract))


def _check_request(model: Path, output: Path | None, threshold: float, target: float | None) -> None:
    check_model_file(model)
    if model.suffix != SUFFIX:
        raise ArtefactError(
            f'{model}: its suffix is "{model.suffix}"; expected a {SUFFIX} checkpoint; name the one that it was made of'
        )
    if output is not None and output.suffix != SUFFIX:
        raise RequestError(f"-o {output}: expected a name that ends in {SUFFIX}; use -o {output.with_suffix(SUFFIX)}")
    if output is not None and output.exists() and output.samefile(model):
        raise RequestError(f"-o {output}: would replace the checkpoint that is read; name another output")
    if not 0 <= threshold < math.inf:
        raise RequestError(f"-pth {threshold:g}: expected a number from 0 on, as 0.1; the largest norm of a layer is 1")
    if target is not None and not 0 < target <= 1:
        raise RequestError(f"--target-flops {target:g}: expected a share above 0 and up to 1, as 0.5 for half")
