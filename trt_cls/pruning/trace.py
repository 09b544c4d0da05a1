"""Finds which filters of a network stay or go together, from the operators that torch.export records.

Filters are followed as long as every operator treats channels one by one. Where one does not (it splits them,
normalizes across them, or is not in the tables below), nothing is removed from the layers that feed it, and the reason
is recorded. Does not know: architectures; any network that can be exported is followed by its operators.

Torch-Pruning 1.6 is not used: it prunes by ratios, without TAO's threshold, granularity and equalization; it treats a
slice of channels as an element-wise operator (CSPDarkNet-tiny then fails on sizes that do not fit); ShuffleNet fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from trt_cls.errors import TrtClsError, one_line
from trt_cls.pruning.channel_graph import (
    ChannelGraph,
    ChannelPart,
    Channels,
    Group,
    Norm,
    Shape,
    WeightedLayer,
    aligned,
    moved,
    reduced,
    reshaped,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node

# fmt: off
POINTWISE = (
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "gelu", "sigmoid", "hardsigmoid",
    "hardswish", "tanh", "softplus", "clamp", "clamp_min", "dropout", "feature_dropout", "alias", "contiguous", "clone",
    "detach", "to",
)
SPATIAL = (
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "pad",
)
"""On [N, C, H, W], each channel separately."""
# fmt: on
RESHAPING = ("view", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
ELEMENTWISE = ("add", "sub", "mul", "div", "maximum", "minimum")
REDUCING = ("mean", "sum", "amax")

Step = Callable[["Node"], Channels | None]


def channel_graph(module: nn.Module, input_shape: tuple[int, int, int]) -> ChannelGraph:
    """The channel graph of a network in eval mode for images of `input_shape`.

    Raises:
        TrtClsError: torch.export can't trace the network.
    """
    import torch

    try:
        with torch.no_grad():
            program = torch.export.export(module, (torch.zeros(2, *input_shape),), strict=False)
    except Exception as error:  # the exporter raises errors of any kind
        raise TrtClsError(
            f"torch.export can't trace the network ({one_line(error)[:200]}); expected one that can be "
            "exported to ONNX; choose another arch"
        ) from error
    return _Trace(program).graph()


class _Trace:
    """One pass over the operators, in execution order."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._nodes = program.graph.nodes
        self._tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._channels: dict[Node, Channels] = {}
        self._layers: dict[str, WeightedLayer] = {}
        self._norms: dict[str, Norm] = {}
        self._leaders: dict[str, str] = {}
        self._unprunable: dict[str, str] = {}
        self._other_multiply_adds = 0
        self._steps: dict[str, Step] = {
            **dict.fromkeys(POINTWISE, self._same),
            **dict.fromkeys(SPATIAL, self._spatial),
            **dict.fromkeys(RESHAPING, self._reshape),
            **dict.fromkeys(ELEMENTWISE, self._combine),
            **dict.fromkeys(REDUCING, self._reduce),
            "batch_norm": self._norm,
            "cat": self._concatenate,
            "permute": self._permute,
            "transpose": self._permute,
            "select": self._select,
            "slice": self._slice,
        }

    def graph(self) -> ChannelGraph:
        for node in self._nodes:
            if node.op == "output":
                self._keep_sources(node, "computes the logits")
            elif node.op == "call_function" and (channels := self._follow(node)):
                self._channels[node] = channels
        return ChannelGraph(self._layers, tuple(self._norms.values()), tuple(self._groups()), self._other_multiply_adds)

    def _groups(self) -> Iterator[Group]:
        members: dict[str, list[str]] = {}
        for name in self._layers:
            members.setdefault(self._leader(name), []).append(name)
        for names in members.values():
            yield Group(tuple(names), next((self._unprunable[name] for name in names if name in self._unprunable), ""))

    def _follow(self, node: Node) -> Channels | None:
        """The channels of an operator's output; None where none of them can be removed."""
        kind = _kind(node)
        if kind in ("conv2d", "linear"):
            return self._layer(node)
        if not any(source in self._channels for source in node.all_input_nodes):
            return None
        step = self._steps.get(kind)
        channels = step(node) if step else None
        if channels is None:
            self._keep_sources(node, f"feeds {kind}")
        return channels

    def _layer(self, node: Node) -> Channels | None:
        """A convolution or dense layer: its filters are channels that may be removed."""
        given, shape = _arguments(node), _shape(node)
        weight = _shape(given["weight"])
        axis = 1 if len(weight) == 4 else len(shape) - 1
        positions = prod(shape[1:]) // shape[axis]
        name = self._layer_name(node, given)
        if name is None:
            self._other_multiply_adds += prod(weight) * positions
            return None
        filters, fan_in, *kernel = weight
        groups, source = given.get("groups", 1), self._channels.get(given["input"])
        inputs: tuple[ChannelPart, ...] = ()
        if groups > 1:
            self._in_groups(node, name, source, depthwise=groups == filters and fan_in == 1)
        elif source and source.axis == axis:
            inputs = source.parts
        else:
            self._keep_sources(node, "is read across its channels")
        self._layers[name] = WeightedLayer(name, filters, inputs, fan_in, prod(kernel), positions)
        return Channels(axis, (ChannelPart(name, filters),))

    def _in_groups(self, node: Node, name: str, source: Channels | None, *, depthwise: bool) -> None:
        """A depthwise convolution keeps the filters of the layer before it; in other groups all stay."""
        parts = source.parts if source and source.axis == 1 else ()
        if depthwise and len(parts) == 1 and parts[0].repeat == 1 and _shape(node)[1] == parts[0].filters:
            self._couple(name, parts[0].layer)
            return
        self._keep_sources(node, "feeds a convolution in groups")
        self._unprunable[name] = "works on channels that stay" if depthwise else "works in groups"

    def _layer_name(self, node: Node, given: Mapping[str, Any]) -> str | None:
        """The module whose weights an operator uses; None where they are computed, or used by an earlier operator.

        Then nothing is removed from what it reads.
        """
        name, bias = self._owner(given["weight"], "weight"), given.get("bias")
        if name is None or (bias is not None and self._owner(bias, "bias") != name):
            self._keep_sources(node, "feeds computed weights")
            return None
        if name in self._layers:
            self._unprunable[name] = "is used twice"
            self._keep(self._layers[name].inputs, "feeds a layer that is used twice")
            self._keep_sources(node, "feeds a layer that is used twice")
            return None
        return name

    def _owner(self, tensor: Node | None, key: str) -> str | None:
        """The module that has a tensor under the name `key`."""
        module, _, own = self._tensors.get(tensor.name if tensor else "", "").rpartition(".")
        return module if own == key else None

    def _norm(self, node: Node) -> Channels | None:
        given = _arguments(node)
        channels, name = self._channels.get(given["input"]), self._owner(given["running_mean"], "running_mean")
        if channels is None or channels.axis != 1 or name is None or name in self._norms:
            return None
        self._norms[name] = Norm(name, channels.parts)
        return channels

    def _same(self, node: Node) -> Channels | None:
        return self._channels.get(node.all_input_nodes[0])

    def _spatial(self, node: Node) -> Channels | None:
        source = node.all_input_nodes[0]
        channels, before, after = self._channels[source], _shape(source), _shape(node)
        return channels if len(before) == 4 and channels.axis == 1 and before[:2] == after[:2] else None

    def _reshape(self, node: Node) -> Channels | None:
        source = node.all_input_nodes[0]
        return reshaped(self._channels[source], _shape(source), _shape(node)) if source in self._channels else None

    def _permute(self, node: Node) -> Channels | None:
        given, rank = _arguments(node), len(_shape(node))
        order = list(range(rank))
        if "dims" in given:
            order = [axis % rank for axis in given["dims"]]
        else:
            one, other = given["dim0"] % rank, given["dim1"] % rank
            order[one], order[other] = other, one
        return moved(self._channels[node.all_input_nodes[0]], order)

    def _reduce(self, node: Node) -> Channels | None:
        given, source = _arguments(node), node.all_input_nodes[0]
        rank = len(_shape(source))
        axes = [axis % rank for axis in given.get("dim") or range(rank)]
        return reduced(self._channels[source], axes, kept=bool(given.get("keepdim", False)))

    def _select(self, node: Node) -> Channels | None:
        source = node.all_input_nodes[0]
        return reduced(self._channels[source], [_arguments(node)["dim"] % len(_shape(source))], kept=False)

    def _slice(self, node: Node) -> Channels | None:
        source = node.all_input_nodes[0]
        channels = self._channels[source]
        return channels if _shape(node)[channels.axis] == _shape(source)[channels.axis] else None

    def _concatenate(self, node: Node) -> Channels | None:
        given = _arguments(node)
        axis = given.get("dim", 0) % len(_shape(node))
        parts: list[ChannelPart] = []
        for source in given["tensors"]:
            channels = self._channels.get(source, Channels(axis, (ChannelPart(None, _shape(source)[axis]),)))
            if channels.axis != axis:
                return None
            parts.extend(channels.parts)
        return Channels(axis, tuple(parts))

    def _combine(self, node: Node) -> Channels | None:
        """Layers whose outputs are combined element by element keep the same filters."""
        sources = node.all_input_nodes
        values = aligned(
            [self._channels.get(source) for source in sources],
            [_shape(source) for source in sources],
            len(_shape(node)),
        )
        if values is None:
            return None
        first, *others = (value for value in values if value.size > 1)
        for other in others:
            for part, theirs in zip(first.parts, other.parts, strict=True):
                self._couple(part.layer, theirs.layer)
        self._keep((part for value in values if value.size == 1 for part in value.parts), "meets all channels")
        return first

    def _couple(self, one: str | None, other: str | None) -> None:
        if one is not None and other is not None:
            self._leaders[self._leader(one)] = self._leader(other)
        elif name := one or other:
            self._unprunable.setdefault(name, "meets channels that stay")

    def _leader(self, name: str) -> str:
        while self._leaders.get(name, name) != name:
            name = self._leaders[name]
        return name

    def _keep_sources(self, node: Node, reason: str) -> None:
        for source in node.all_input_nodes:
            if source in self._channels:
                self._keep(self._channels[source].parts, reason)

    def _keep(self, parts: Iterable[ChannelPart], reason: str) -> None:
        for part in parts:
            if part.layer is not None:
                self._unprunable.setdefault(part.layer, reason)


def _kind(node: Node) -> str:
    """The operator's name, without namespace, overload and the suffix of in-place operators."""
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def _arguments(node: Node) -> dict[str, Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _shape(node: Node) -> Shape:
    return tuple(node.meta["val"].shape)
