"""Means of a network's weights: an exponential moving average over the steps, and the mean of several checkpoints.

Floating-point tensors are averaged; counts of batches are those of the last network. Not torch.optim.swa_utils: its
first update copies the network instead of averaging it, its count on the device costs a synchronization per step, and
its update_bn neither knows several processes nor frozen layers. Does not know: files.
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
    """An exponential moving average, `model`, of weights and batch normalization's statistics."""

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
        """Adds the network as it is now.

        The mean keeps the share (1 + n) / (10 + n) at its n-th update, from 0, until that exceeds the decay, so that
        the first weights, which are random, are soon forgotten.
        """
        kept = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_([mean for mean, _ in self._floats], [live for _, live in self._floats], 1 - kept)
        for count, live in self._counts:
            count.copy_(live)
        self._updates += 1

    def state(self) -> dict[str, Any]:
        """The mean and the number of its updates."""
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
    """Sets batch normalization's statistics to their means over `batches` [n,C,H,W], each process's own share.

    Frozen statistics are not changed.
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
    """The layers of batch normalization whose statistics training changes."""
    return [module for module in network.train().modules() if isinstance(module, _BatchNorm) and module.training]
