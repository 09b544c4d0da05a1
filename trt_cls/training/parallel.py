"""Data parallelism over processes (their GPUs, gradients and buffers), and one network split into stages over devices.

A stage is consecutive layers; values are moved where it ends. An undivided batch keeps one device busy at a time.
Microbatches keep all of them busy: kernels are queued without waiting, so that a device begins with the next microbatch
while the one behind it has the last, and autograd runs in a thread for each device. (torch.distributed.pipelining needs
a process for each stage, with the optimizer's state, the checkpoints and the random numbers spread over them.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from trt_cls.distributed.processes import Processes, joined
from trt_cls.errors import DeviceError, RequestError
from trt_cls.models.network import Network

COPIES = 3
"""Of each weight in memory during training: itself, its gradient, the optimizer's."""


@contextmanager
def joined_to_train(device: str, stages: int = 1) -> Iterator[Processes]:
    """`joined`, with tensors exchanged over NCCL on GPUs, where each process has `stages` of its own.

    The first of them becomes the current device; NCCL needs all GPUs of the machine visible.

    Raises:
        DeviceError: there are more processes on this machine than GPUs.
        TrtClsError: another process has ended without an error.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    backend = "nccl" if several and _claim_gpu(device, stages) else "gloo"
    with joined(backend=backend, advice="go on from the last saved step with --resume") as processes:
        yield processes


def replicated(model: nn.Module, processes: Processes) -> nn.Module:
    """`model`, whose gradients become the mean over the processes as they are computed.

    Each process normalizes its own batch; running statistics are those of the first.
    """
    return model if processes.size == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)


def average(tensor: Tensor, weight: Tensor, processes: Processes) -> None:
    """Sets `tensor` to its weighted mean over the processes; all of them must call it."""
    if processes.size == 1:
        return
    total, weights = tensor.double() * weight, weight.clone()
    distributed.all_reduce(total)
    distributed.all_reduce(weights)
    tensor.copy_(total / weights)


def copy_from_first(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Sets each of `tensors` to that of the first process; all of them must call it."""
    if processes.size > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def spread(network: Network, shares: Sequence[float], devices: Sequence[torch.device], batch_size: int) -> None:
    """Puts each layer on its device, by memory: its weights, and its outputs for `batch_size` images.

    Raises:
        RequestError: a device would get no layer.
    """
    layers = [getattr(network, step.name) for step in network.steps]
    stages = split(_memory(network, layers, batch_size), shares)
    if len(set(stages)) < len(shares):
        raise RequestError(
            f"train_config.model_parallelism: {list(shares)} of {len(layers)} layers leaves a device without one; "
            "expected at least one layer for each; give fewer or more even shares"
        )
    for layer, stage in zip(layers, stages, strict=True):
        layer.to(devices[stage])
        layer.register_forward_pre_hook(_Mover(devices[stage]))


def split(costs: Sequence[float], shares: Sequence[float]) -> list[int]:
    """The stage of each layer: the one whose share of the total cost contains the middle of the layer."""
    ends = [end / sum(shares) * sum(costs) for end in accumulate(shares)]
    middles = [end - cost / 2 for end, cost in zip(accumulate(costs), costs, strict=True)]
    return [sum(middle > end for end in ends[:-1]) for middle in middles]


class Pipelined(nn.Module):
    """`network` on a batch in `parts` microbatches of about the same size, at least two images each."""

    def __init__(self, network: nn.Module, parts: int) -> None:
        super().__init__()
        self._network = network
        self._parts = parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n,classes] of images [n,C,H,W]."""
        parts = max(1, min(self._parts, len(images) // 2))
        return torch.cat([self._network(part) for part in images.tensor_split(parts)])


def _claim_gpu(device: str, stages: int) -> bool:
    """Makes this process's first GPU on its machine the current one; False on a CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return False
    number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if (number + 1) * stages > found:
        raise DeviceError(
            f"process {number + 1} on this machine finds {found} GPUs; expected {stages} for each process; "
            f"start {found // stages} processes, or use --device cpu"
        )
    torch.cuda.set_device(number * stages)
    return True


class _Mover:
    """Moves a layer's inputs to its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.to(self._device, non_blocking=True) for value in inputs)


def _memory(network: Network, layers: Sequence[nn.Module], batch_size: int) -> list[float]:
    """The number of values that each layer stores, measured with one empty image."""
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
