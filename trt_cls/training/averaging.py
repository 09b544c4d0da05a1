"""Means of a network's weights: a running one over the steps, and the plain one of several checkpoints.

Means of floating-point tensors; counts of batches are taken from the last network. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_cls.distributed.processes import Processes
from trt_cls.training.compute import Compute
from trt_cls.training.parallel import average
from trt_cls.training.validation import evaluating


class RunningMean:
    """An exponential mean of weights and batch normalisation's statistics, `model`, that begins as the network is."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = deepcopy(network).requires_grad_(False)
        self._decay = decay
        self._updates = 0
        own, live = self.model.state_dict(), network.state_dict()
        pairs = [(own[name], live[name]) for name in own]
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the network as it is now.

        The share (1 + n) / (10 + n) of the mean is kept at its n-th update, from 0, until that exceeds the decay: the
        first weights, which were drawn, are soon forgotten.
        """
        kept = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_([mean for mean, _ in self._floats], [live for _, live in self._floats], 1 - kept)
        for count, live in self._counts:
            count.copy_(live)
        self._updates += 1

    def state(self) -> dict[str, Any]:
        """All that it is."""
        return {"model": self.model.state_dict(), "updates": self._updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._updates = state["updates"]


def mean_of(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor of several state dicts, summed in float64."""
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    number = 0
    for last in states:
        number += 1
        for name, tensor in last.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    return last | {name: (total / number).to(last[name].dtype) for name, total in sums.items()}


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Iterable[Tensor], compute: Compute, processes: Processes) -> None:
    """Sets batch normalisation's statistics to their means over `batches` [n,C,H,W], each process's own share.

    Each layer sees what the network itself makes of the images; statistics that are frozen stay as they are.
    """
    layers = _learning(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with evaluating(network):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
        for images in batches:
            if len(images) > 1:
                with compute.autocast():
                    network(compute.images(images))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        share = layer.num_batches_tracked.double()
        for statistic in (layer.running_mean, layer.running_var):
            average(statistic, share, processes)


def _learning(network: nn.Module) -> Sequence[Any]:
    """The layers of batch normalisation whose statistics training changes."""
    return [module for module in network.train().modules() if isinstance(module, _BatchNorm) and module.training]
