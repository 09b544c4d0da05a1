"""What the worker processes of tests/data/test_workers.py do; they must be able to import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trt_cls.data.stream import Skipped


def make(order: Any) -> Any:
    """A batch of `order` images; other orders are answered otherwise."""
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(order, Exception):
        raise order
    if isinstance(order, str):
        return os.getpid(), len(os.listdir("/dev/shm"))
    values = np.random.default_rng(order).integers(0, 256, (order, 3, 50, 50), dtype=np.uint8)
    time.sleep(0.05 * (order % 2))
    return torch.from_numpy(values), torch.tensor(order / 7, dtype=torch.float64), (Skipped(Path("a"), "why"),)
