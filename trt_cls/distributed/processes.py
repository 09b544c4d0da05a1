"""The processes of one call, as torchrun starts them: rank and size, shares of work, exchange of values.

Values are exchanged between the CPUs (gloo), so that no exchange waits for a GPU. A single process needs no torch.
Shares of independent work (`own_rank`) need no connection: such processes neither know one another nor run at once.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from trt_cls.distributed.failure import end_with_launcher, ended_together
from trt_cls.errors import RequestError, require

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""Timeout of an exchange: a slow process is waited for, one that ends closes its connections."""


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    per_machine: int = 1
    rank_on_machine: int = 0
    _control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints for all."""
        return self.rank == 0

    @property
    def threads(self) -> int | None:
        """This process's share of the machine's CPU threads; None: all of them."""
        return None if self.size == 1 else max(1, len(os.sched_getaffinity(0)) // self.per_machine)

    def share(self, items: Sequence[T], batch_size: int) -> Sequence[T]:
        """This process's share of `items`: consecutive ones, in complete batches.

        The batches are the same as those of a single process, so that the results are equal to the bit on the same
        machine.
        """
        batches = math.ceil(len(items) / batch_size)
        start, end = (math.ceil(batches * rank / self.size) * batch_size for rank in (self.rank, self.rank + 1))
        return items[start:end]

    def totals(self, *values: int) -> tuple[int, ...]:
        """The sum of each value over the processes; all of them must call it."""
        if self.size == 1:
            return values
        torch = torch_for_processes()
        sums = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(sums, group=self._control)
        return tuple(int(value) for value in sums)

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order; all of them must call it."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        torch_for_processes().distributed.all_gather_object(values, value, group=self._control)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of `make` in the first process, the only one that calls it; all processes must call this."""
        value = [make() if self.first else None]
        if self.size > 1:
            torch_for_processes().distributed.broadcast_object_list(value, 0, group=self._control)
        return value[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Returns when all processes have called it."""
        self.totals(0)


ALONE = Processes()


def is_first() -> bool:
    """Whether this process prints for all; for use before they have joined."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(*, advice: str, backend: str = "gloo") -> Iterator[Processes]:
    """Joins the processes that torchrun's environment variables describe, for the duration of the block.

    An error in one process ends all: it is raised there, the others exit silently with its status. `backend` is torch's
    backend for tensors, `advice` what to do after a process was killed.

    Raises:
        MissingDependency: there are several processes, and torch is not installed.
        TrtClsError: another process ended without an error message.
    """
    end_with_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    distributed = torch_for_processes().distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    store = distributed.PrefixStore(_start(store, rank, size), store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    with ended_together(store, rank, size, advice):
        processes = Processes(rank, size, per_machine, int(os.environ.get("LOCAL_RANK", rank)), control)
        yield processes
        processes.wait()
    distributed.destroy_process_group()


def _start(store: Any, rank: int, size: int) -> str:
    """A name that the processes that were started together share.

    torchrun keeps its store when it starts all of them again, with the addresses of those before. Each process writes
    a name that is new, and the first one answers under it until all have answered.
    """
    own = os.urandom(16).hex()
    if rank:
        store.set(f"trt_cls/{rank}", own)
        start = str(store.get(f"trt_cls/{own}").decode())
        store.add(f"trt_cls/{start}", 1)
        return start
    while store.add(f"trt_cls/{own}", 0) < size - 1:
        for other in range(1, size):
            if store.check([f"trt_cls/{other}"]):
                store.set(f"trt_cls/{store.get(f'trt_cls/{other}').decode()}", own)
        time.sleep(0.01)
    return own


def torch_for_processes() -> ModuleType:
    """torch, which connects the processes.

    Raises:
        MissingDependency: it is not installed.
    """
    return require("torch", "working in several processes", "train")


class Rank(NamedTuple):
    """Process number `rank`, from 0, of `size`."""

    rank: int
    size: int
    by: str = ""
    """Where that was found."""


def own_rank(flag: str | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """The share of `--shard K/N`, else of torchrun, else of a SLURM array; else all.

    Raises:
        RequestError: K is none of 0 to N - 1, or the array's task numbers are not evenly spaced.
    """
    if flag is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", flag, re.ASCII)
        if match is None:
            raise RequestError(f"--shard {flag}: expected K/N, K from 0 on; the first of four is --shard 0/4")
        return _checked(int(match[1]), int(match[2]), f"--shard {flag}")
    if "WORLD_SIZE" in environment:
        return _checked(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), "torchrun")
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, least = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "SLURM_ARRAY_TASK_MIN")
        step = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", 1))
        size = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        return _checked((task - least) // step, size, f"SLURM_ARRAY_TASK_ID {task} from {least} on")
    return Rank(0, 1)


def _number(environment: Mapping[str, str], name: str, default: int = -1) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else default


def _checked(rank: int, size: int, by: str) -> Rank:
    if not 0 <= rank < size:
        raise RequestError(f"{by}: process {rank} of {size} found, expected K of N from 0 on; name it with --shard K/N")
    return Rank(rank, size, by)
