"""What training in several processes needs beyond finding each other: GPUs and tensors that they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from trt_cls.distributed.processes import Processes, joined
from trt_cls.errors import DeviceError


@contextmanager
def joined_to_train(device: str, stages: int = 1) -> Iterator[Processes]:
    """`joined`, with tensors exchanged over NCCL on GPUs, where each process has `stages` of its own.

    The first of them is made the current one: NCCL sees all GPUs of the machine, so that none is hidden.

    Raises:
        DeviceError: there are more processes on this machine than GPUs.
        TrtClsError: another process has ended without a word.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    backend = "nccl" if several and _claim_gpu(device, stages) else "gloo"
    with joined(backend=backend, cure="go on from the last saved step with --resume") as processes:
        yield processes


def replicated(model: nn.Module, processes: Processes) -> nn.Module:
    """`model`, whose gradients become the mean over the processes as they are computed.

    Each process normalises its own batch; running statistics are those of the first.
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


def take_over(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Sets each of `tensors` to that of the first process; all of them must call it."""
    if processes.size > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


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
