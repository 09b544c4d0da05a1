"""Which share of independent work this process has: by a flag, by torchrun, or by an array of SLURM jobs.

The processes need not know one another, nor run at the same time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from trt_cls.errors import RequestError


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
