"""Removes filters from a network: cuts its tensors, builds the smaller network, counts its multiply-adds.

Removing a filter is the same as setting its channel to zero wherever a layer reads it; `require_equal` checks that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from trt_cls.errors import TrtClsError, one_line
from trt_cls.pruning.channel_graph import ChannelGraph, ChannelPart
from trt_cls.pruning.selection import Filters, Norms

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-3
"""As a share of the largest logit: sums over fewer channels round differently, by at most 1e-5 in a deep network; a
wrong channel changes logits by their own size."""


def filter_norms(module: nn.Module, graph: ChannelGraph) -> dict[str, Norms]:
    """The L2 norm of each filter's kernel, without the bias."""
    return {
        name: module.get_parameter(f"{name}.weight").detach().float().flatten(1).norm(dim=1).numpy()
        for name in graph.layers
    }


def multiply_adds_left(graph: ChannelGraph, kept: Mapping[str, Filters]) -> int:
    """Those of convolutions and dense layers for one image, with the filters that are kept."""
    total = graph.other_multiply_adds
    for name, layer in graph.layers.items():
        fan_in = len(_indices(layer.inputs, kept)) if layer.inputs else layer.fan_in
        total += layer.positions * layer.kernel * len(kept[name]) * fan_in
    return total


def pruned_network(module: nn.Module, graph: ChannelGraph, kept: Mapping[str, Filters]) -> nn.Module:
    """A copy of `module` with only the filters that are kept."""
    from trt_cls.models.network import resize_layers

    tensors = module.state_dict()
    tensors.update(_cut_tensors(module, graph, kept))
    smaller = deepcopy(module)
    resize_layers(smaller, {name: tensor.shape for name, tensor in tensors.items()})
    smaller.load_state_dict(tensors)
    return smaller


def require_equal(
    pruned: nn.Module,
    module: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Filters],
    input_shape: tuple[int, int, int],
) -> None:
    """Compares the logits of `pruned` with those of `module` with the removed channels zeroed.

    Raises:
        TrtClsError: the two differ, or `pruned` does not run.
    """
    import torch

    images = torch.empty(2, *input_shape).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = torch.func.functional_call(module, zeroed_tensors(module, graph, kept), (images,))
        try:
            found = pruned(images)
        except RuntimeError as error:
            raise TrtClsError(
                f"the pruned network does not run ({one_line(error)}); its code has fixed widths; "
                "exclude the layer with -el, or choose another arch"
            ) from error
    difference = float((found - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise TrtClsError(
            "the pruned network's logits differ from those of the network with the same channels zeroed by "
            f"{difference:.3g}; its code depends on widths; exclude layers with -el, or choose another arch"
        )


def zeroed_tensors(module: nn.Module, graph: ChannelGraph, kept: Mapping[str, Filters]) -> dict[str, Tensor]:
    """The weights of `module`, with zeros where they read removed channels."""
    zeroed = {}
    for name, layer in graph.layers.items():
        if layer.inputs:
            weight = module.get_parameter(f"{name}.weight").detach().clone()
            gone = np.setdiff1d(np.arange(weight.shape[1]), _indices(layer.inputs, kept))
            weight[:, gone] = 0
            zeroed[f"{name}.weight"] = weight
    return zeroed


def _cut_tensors(module: nn.Module, graph: ChannelGraph, kept: Mapping[str, Filters]) -> dict[str, Tensor]:
    state = module.state_dict()
    cut = {}
    for name, layer in graph.layers.items():
        weight = state[f"{name}.weight"][kept[name]]
        cut[f"{name}.weight"] = weight[:, _indices(layer.inputs, kept)] if layer.inputs else weight
        if f"{name}.bias" in state:
            cut[f"{name}.bias"] = state[f"{name}.bias"][kept[name]]
    for norm in graph.norms:
        for key in ("weight", "bias", "running_mean", "running_var"):
            if f"{norm.name}.{key}" in state:
                cut[f"{norm.name}.{key}"] = state[f"{norm.name}.{key}"][_indices(norm.channels, kept)]
    return cut


def _indices(parts: Sequence[ChannelPart], kept: Mapping[str, Filters]) -> Filters:
    """Indices of the channels that are left of `parts`."""
    found, offset = [], 0
    for part in parts:
        filters = np.arange(part.filters) if part.layer is None else kept[part.layer]
        found.append(offset + (filters[:, None] * part.repeat + np.arange(part.repeat)).ravel())
        offset += part.size
    return np.concatenate(found)
