"""Which filters stay, by the rules of TAO's prune: the normalized L2 norm of each filter against one threshold.

Does not know: how the groups of layers that keep the same filters are found, nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_cls.errors import ArtefactError, RequestError, did_you_mean
from trt_cls.pruning.channel_graph import ChannelGraph, Group

Normalizer = Literal["max", "L2"]
Equalization = Literal["union", "intersection", "arithmetic_mean", "geometric_mean"]

Norms = NDArray[np.float32]
"""One per filter."""
Filters = NDArray[np.int64]
"""Indices of filters, ascending."""


@dataclass(frozen=True)
class Criteria:
    """The rules of the selection; the defaults are TAO's."""

    threshold: float = 0.1
    """Filters whose score is at most this are removed."""
    granularity: int = 8
    """The number of filters that stay is rounded up to a multiple of this."""
    min_filters: int = 16
    """Minimum number of filters per layer."""
    normalizer: Normalizer = "max"
    equalization: Equalization = "union"
    """How the scores of several layers that keep the same filters become one."""
    excluded: tuple[str, ...] = ()
    """Layers that keep all filters, as do the others of their group."""


@dataclass(frozen=True)
class Scored:
    """A group of layers with one score per filter."""

    group: Group
    scores: Norms


def scored(graph: ChannelGraph, norms: Mapping[str, Norms], criteria: Criteria) -> list[Scored]:
    """The groups from which filters can be removed; `norms` are those of each layer's filters.

    Raises:
        RequestError: an excluded layer does not exist.
        ArtefactError: a norm is not a finite number.
    """
    known = list(graph.layers)
    for name in criteria.excluded:
        if name not in graph.layers:
            raise RequestError(
                f'-el "{name}": the network has no such layer; expected one of its {len(known)} convolutions and '
                f"dense layers{did_you_mean(name, known)}; --dry-run lists them"
            )
    return [
        Scored(group, _merged([_normalized(name, norms[name], criteria) for name in group.layers], criteria))
        for group in graph.groups
        if not group.unprunable and not set(criteria.excluded).intersection(group.layers)
    ]


def all_filters(graph: ChannelGraph) -> dict[str, Filters]:
    """The filters of each layer before pruning."""
    return {name: np.arange(layer.filters) for name, layer in graph.layers.items()}


def kept_filters(graph: ChannelGraph, groups: Sequence[Scored], criteria: Criteria) -> dict[str, Filters]:
    """The filters of each layer that stay."""
    kept = all_filters(graph)
    for group in groups:
        filters = _kept(group.scores, criteria)
        kept.update(dict.fromkeys(group.group.layers, filters))
    return kept


def _kept(scores: Norms, criteria: Criteria) -> Filters:
    depth = len(scores)
    count = max(int((scores > criteria.threshold).sum()), min(criteria.min_filters, depth))
    count = min(-(-count // criteria.granularity) * criteria.granularity, depth)
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _normalized(name: str, norms: Norms, criteria: Criteria) -> Norms:
    """Relative to the layer's largest, or to the root of the sum of squares over the number of filters."""
    if not np.isfinite(norms).all():
        raise ArtefactError(
            f"layer {name} has weights that are not finite numbers; expected those of a trained network; "
            "prune another checkpoint"
        )
    if not norms.any():
        return norms
    scale = norms.max() if criteria.normalizer == "max" else np.linalg.norm(norms.astype(np.float64)) / len(norms)
    return np.asarray(norms / scale, dtype=np.float32)


def _merged(stats: Sequence[Norms], criteria: Criteria) -> Norms:
    layers: Norms = np.stack(stats)
    match criteria.equalization:
        case "union":
            merged = layers.max(axis=0)
        case "intersection":
            merged = layers.min(axis=0)
        case "arithmetic_mean":
            merged = layers.mean(axis=0)
        case "geometric_mean":
            with np.errstate(divide="ignore"):  # a filter of zeros: exp(-inf) is 0
                merged = np.exp(np.log(layers).mean(axis=0))
    return np.asarray(merged, dtype=np.float32)
