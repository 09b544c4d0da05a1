"""One network over several devices: consecutive layers on each, values moved where a stage ends.

A whole batch keeps one device at work at a time. In parts it keeps all of them at work: kernels are queued without
waiting, so that a device begins with the next part while the one behind it has the last, and autograd walks back on
each device in a thread of its own. (torch.distributed.pipelining wants a process for each stage, and the optimizer's
state, the checkpoints and the random numbers spread over them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.errors import RequestError
from trt_cls.models.network import Network

COPIES = 3
"""Of each weight in memory while it learns: itself, its gradient, the optimizer's."""


def spread(network: Network, shares: Sequence[float], devices: Sequence[torch.device], batch_size: int) -> None:
    """Puts each layer on its device, by memory: its weights, and what it hands on of `batch_size` images.

    Raises:
        RequestError: a device would get no layer.
    """
    layers = [getattr(network, step.name) for step in network.steps]
    stages = split(_memory(network, layers, batch_size), shares)
    if len(set(stages)) < len(shares):
        raise RequestError(
            f"train_config.model_parallelism: {list(shares)} of {len(layers)} layers leaves a device without one; "
            "expected a layer for each at least; give fewer or more even shares"
        )
    for layer, stage in zip(layers, stages, strict=True):
        layer.to(devices[stage])
        layer.register_forward_pre_hook(_Mover(devices[stage]))


def split(costs: Sequence[float], shares: Sequence[float]) -> list[int]:
    """The stage of each layer: the one in whose share of the whole cost the middle of the layer falls."""
    ends = [end / sum(shares) * sum(costs) for end in accumulate(shares)]
    middles = [end - cost / 2 for end, cost in zip(accumulate(costs), costs, strict=True)]
    return [sum(middle > end for end in ends[:-1]) for middle in middles]


class Pipelined(nn.Module):
    """`network` on a batch in `parts` of about the same size, of two images at least."""

    def __init__(self, network: nn.Module, parts: int) -> None:
        super().__init__()
        self._network = network
        self._parts = parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n,classes] of images [n,C,H,W]."""
        parts = max(1, min(self._parts, len(images) // 2))
        return torch.cat([self._network(part) for part in images.tensor_split(parts)])


class _Mover:
    """Takes a layer's inputs to its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.to(self._device, non_blocking=True) for value in inputs)


def _memory(network: Network, layers: Sequence[nn.Module], batch_size: int) -> list[float]:
    """Numbers that each layer keeps, found with one empty image."""
    outputs: list[float] = []

    def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output.numel() * batch_size)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *network.input_shape))
    network.train()
    for hook in hooks:
        hook.remove()
    weights = [COPIES * sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    return [output + weight for output, weight in zip(outputs, weights, strict=True)]
