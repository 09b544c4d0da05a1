"""The processes that train one network together, as torchrun starts them: which this is, and what they tell each other.

Counts and short texts travel between the CPUs (gloo), so that no exchange waits for a GPU. Nothing here knows networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from trt_cls.errors import DeviceError, TrtClsError

T = TypeVar("T")

BROKEN_CONNECTION = ("gloo", "nccl", "connection", "peer", "socket", "store")
"""What torch's errors speak of when another process is gone; they have no type of their own."""


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `size` that train together."""

    rank: int = 0
    size: int = 1
    per_machine: int = 1
    _control: Any = None

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def totals(self, *values: int) -> tuple[int, ...]:
        """The sum of each value over the processes; all of them must call it."""
        if self.size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.int64)
        distributed.all_reduce(sums, group=self._control)
        return tuple(int(value) for value in sums)

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order; all of them must call it."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        distributed.all_gather_object(values, value, group=self._control)
        return values

    def average(self, tensor: Tensor, weight: Tensor) -> None:
        """Sets `tensor` to its weighted mean over the processes; all of them must call it."""
        if self.size == 1:
            return
        total, weights = tensor.double() * weight, weight.clone()
        distributed.all_reduce(total)
        distributed.all_reduce(weights)
        tensor.copy_(total / weights)

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Sets each of `tensors` to that of the first process; all of them must call it."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Returns when all processes are here."""
        self.totals(0)

    def replicated(self, model: nn.Module) -> nn.Module:
        """`model`, whose gradients become the mean over the processes as they are computed.

        Each process normalises its own batch; running statistics are those of the first.
        """
        return model if self.size == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)


ALONE = Processes()


@contextmanager
def joined(device: str, stages: int = 1) -> Iterator[Processes]:
    """Joins the processes that torchrun's environment variables name, for as long as the block runs.

    On GPUs each process has `stages` of its own, the first of which is made the current one. An error ends all
    processes and is raised in one, the others exit without a word.

    Raises:
        DeviceError: there are more processes on this machine than GPUs.
        TrtClsError: another process has ended without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = _claim_gpu(device, stages)
    store, rank, size = next(rendezvous("env://"))
    distributed.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    control = distributed.new_group(backend="gloo")
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    try:
        yield Processes(rank, size, per_machine, control)
    except TrtClsError as error:
        if not _speaks_first(store):
            raise SystemExit(error.exit_code) from error
        raise
    except RuntimeError as error:
        # a process closes its connections when it exits, and by then has claimed the word
        if not _speaks_first(store):
            raise SystemExit(1) from error
        if not any(word in str(error).lower() for word in BROKEN_CONNECTION):
            raise
        raise TrtClsError(
            f"process {rank} of {size}: another one ended without a word (killed, or out of memory?); expected all of "
            "them to the end; go on from the last saved step with --resume"
        ) from error
    distributed.destroy_process_group()


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


def _speaks_first(store: Store) -> bool:
    """Whether no other process has claimed to say why the training ends."""
    with suppress(RuntimeError):  # torchrun, which keeps the store, may be gone
        return bool(store.add("trt_cls/failures", 1) == 1)
    return True
