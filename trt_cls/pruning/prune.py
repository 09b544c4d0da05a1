"""Pruning from checkpoint to checkpoint: choose filters, cut them, verify the result, measure latency, write."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trt_cls.artefacts.model_file import check_model_file
from trt_cls.engines import open_engine
from trt_cls.errors import ArtefactError, RequestError, require
from trt_cls.files import results_folder
from trt_cls.pruning.channel_graph import ChannelGraph
from trt_cls.pruning.selection import Criteria, Scored, all_filters, kept_filters, scored
from trt_cls.pruning.surgery import filter_norms, multiply_adds_left, pruned_network, require_equal
from trt_cls.pruning.trace import channel_graph

if TYPE_CHECKING:
    from torch import nn

    from trt_cls.contract import Contract

SUFFIX = ".safetensors"
SECONDS = 2.0
"""Duration of a latency measurement, all rounds together."""
MIN_ROUNDS, MAX_ROUNDS = 5, 200


class BeforeAfter(NamedTuple):
    """A number before and after pruning."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """The share that is left."""
        return self.after / self.before


@dataclass(frozen=True)
class Pruned:
    """A pruned network and what became smaller."""

    module: nn.Module
    threshold: float
    """The one requested, or the one that reaches the target."""
    filters: Mapping[str, tuple[int, int]]
    """Of each layer, before and after."""
    unprunable: Mapping[str, str]
    """Layers from which no filter may be removed, and why."""
    parameters: BeforeAfter
    """With the statistics of batch normalization, as TAO counts."""
    multiply_adds: BeforeAfter
    """Those of convolutions and dense layers, for one image."""
    latency: BeforeAfter | None = None
    """Median seconds for one image in ONNX Runtime on the CPU; None: not measured."""


def prune(
    model: Path,
    output: Path | None,
    criteria: Criteria | None = None,
    *,
    target: float | None = None,
    latency: bool = False,
) -> Pruned:
    """Prunes the checkpoint `model` and writes the smaller network to `output`, if one is given.

    `target` is the largest share of multiply-adds to leave; it replaces the threshold of `criteria`.

    Raises:
        RequestError: file names, excluded layers or `target` are wrong, or `target` can't be reached.
        TrtClsError: the network can't be traced, or the smaller one gives other logits than it should.
        MissingDependency: torch is missing, or ONNX Runtime for the latency.
    """
    criteria = criteria or Criteria()
    _check_request(model, output, criteria.threshold, target)
    require("torch", "pruning", "train")
    from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(model)
    contract = checkpoint.contract
    if contract.precision == "int8":
        raise ArtefactError(
            f"{model} was trained for INT8, with activation ranges of all its channels; expected a network in fp32; "
            "prune the fp32 checkpoint, retrain it, then train it for INT8"
        )
    pruned = prune_network(checkpoint.module, contract.preprocessing.input_shape, criteria, target=target)
    if latency:
        pruned = replace(pruned, latency=BeforeAfter(*latencies([checkpoint.module, pruned.module], contract)))
    if output is not None:
        results_folder(output.parent)
        save_checkpoint(output, pruned.module, contract)
    return pruned


def prune_network(
    module: nn.Module, input_shape: tuple[int, int, int], criteria: Criteria, *, target: float | None = None
) -> Pruned:
    """A pruned copy of `module`, which is in eval mode; see `prune`."""
    from trt_cls.models.network import count_parameters

    graph = channel_graph(module, input_shape)
    groups = scored(graph, filter_norms(module, graph), criteria)
    if target is not None:
        criteria = replace(criteria, threshold=_threshold(graph, groups, criteria, target))
    kept = kept_filters(graph, groups, criteria)
    smaller = pruned_network(module, graph, kept)
    require_equal(smaller, module, graph, kept, input_shape)
    return Pruned(
        module=smaller,
        threshold=criteria.threshold,
        filters={name: (layer.filters, len(kept[name])) for name, layer in graph.layers.items()},
        unprunable=_unprunable(graph, criteria.excluded),
        parameters=BeforeAfter(count_parameters(module).total, count_parameters(smaller).total),
        multiply_adds=BeforeAfter(multiply_adds_left(graph, all_filters(graph)), multiply_adds_left(graph, kept)),
    )


def latencies(modules: Sequence[nn.Module], contract: Contract) -> list[float]:
    """Median seconds for a batch of one in ONNX Runtime on this CPU, for each of `modules`.

    Raises:
        MissingDependency: ONNX Runtime, or what writes ONNX, is not installed.
    """
    from trt_cls.artefacts.onnx_file import write_onnx
    from trt_cls.export.torch_to_onnx import onnx_from_module

    require("onnxruntime", "measuring the latency", "cpu")  # before the files are written, which takes seconds
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(modules))]
        for path, module in zip(paths, modules, strict=True):
            write_onnx(onnx_from_module(module, contract), path)
        return latencies_of_files(paths)


def latencies_of_files(paths: Sequence[Path]) -> list[float]:
    """Median seconds for a batch of one, for each of the ONNX files, which all take the same images.

    Each round runs all of them, so that a drift of the machine's speed affects all alike; the first round is a warmup.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_engine(path, "cpu"))) for path in paths]
        shape = engines[0].contract.preprocessing.input_shape
        images = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        rounds: list[list[float]] = []
        start = time.perf_counter()
        while len(rounds) <= MIN_ROUNDS or (len(rounds) <= MAX_ROUNDS and time.perf_counter() - start < SECONDS):
            seconds = []
            for engine in engines:
                before = time.perf_counter()
                engine.infer(images)
                seconds.append(time.perf_counter() - before)
            rounds.append(seconds)
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]


def _unprunable(graph: ChannelGraph, excluded: Sequence[str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for group in graph.groups:
        if reason := group.unprunable or ("excluded" if set(excluded).intersection(group.layers) else ""):
            reasons.update(dict.fromkeys(group.layers, reason))
    return reasons


def _threshold(graph: ChannelGraph, groups: Sequence[Scored], criteria: Criteria, target: float) -> float:
    """The lowest threshold that leaves at most `target` of the multiply-adds.

    A bisection over the scores: between two of them the same filters stay.
    """
    everything = multiply_adds_left(graph, all_filters(graph))
    allowed = target * everything

    def left(threshold: float) -> int:
        return multiply_adds_left(graph, kept_filters(graph, groups, replace(criteria, threshold=threshold)))

    scores = np.unique(np.concatenate([np.zeros(1, np.float32), *(group.scores for group in groups)]))
    least = left(float(scores[-1]))
    if least > allowed:
        raise RequestError(
            f"--target-flops {target:g}: {least / everything:.3g} of the multiply-adds are left "
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


def _check_request(model: Path, output: Path | None, threshold: float, target: float | None) -> None:
    check_model_file(model)
    if model.suffix != SUFFIX:
        raise ArtefactError(
            f'{model}: its suffix is "{model.suffix}"; expected a {SUFFIX} checkpoint; name the one it was made from'
        )
    if output is not None and output.suffix != SUFFIX:
        raise RequestError(f"-o {output}: expected a name that ends in {SUFFIX}; use -o {output.with_suffix(SUFFIX)}")
    if output is not None and output.exists() and output.samefile(model):
        raise RequestError(f"-o {output}: would overwrite the checkpoint that is read; name another output")
    if not 0 <= threshold < math.inf:
        raise RequestError(f"-pth {threshold:g}: expected at least 0, as 0.1; the largest norm of a layer is 1")
    if target is not None and not 0 < target <= 1:
        raise RequestError(f"--target-flops {target:g}: expected a share above 0 and up to 1, as 0.5 for half")
