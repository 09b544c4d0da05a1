"""How near the preprocessing kernel comes to its floor: each byte in once and each byte out once, at a copy's speed.

What is not known here: the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.packing import bytes_needed
from trt_cls.preprocessing.pillow import Pixels

REPEATS, ROUNDS = 20, 5
COPIED = 256 << 20
"""Bytes of the copy that counts as the device's bandwidth: more than any cache holds."""
GIGA = 1e9


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, in GB."""

    kernel: float
    """What the output needs, read once and written once, through the time of a launch."""
    copy: float
    """A copy within the GPU's memory, bytes read and bytes written."""
    launch_ms: float

    @property
    def share(self) -> float:
        """Of the copy's, 0 to 1."""
        return self.kernel / self.copy


def bandwidth(kernel: CudaPreprocessing, preprocessing: Preprocessing, images: Sequence[Pixels]) -> Bandwidth:
    """Measured on one batch that lies on the GPU already; kernel and copy in turn, medians.

    Raises:
        DeviceError: the GPU failed, or has not enough memory.
    """
    cuda = kernel.cuda
    with kernel.current():
        stream, staging = cuda.Stream(), kernel.new_staging()
        output = cuda.mem_alloc(len(images) * int(np.prod(preprocessing.input_shape)) * 4)
        source, target = cuda.mem_alloc(COPIED), cuda.mem_alloc(COPIED)
        placed = kernel.copy(images, staging, stream)
        works: tuple[Callable[[], object], ...] = (
            lambda: kernel.launch(placed, int(output), stream),
            lambda: cuda.memcpy_dtod_async(target, source, COPIED, stream),
        )
        rounds = [[_seconds(cuda, stream, work) for work in works] for _ in range(ROUNDS + 1)][1:]  # the first warms up
        stream.synchronize()
    launch, copy = np.median(np.array(rounds), axis=0)
    needed = bytes_needed([(image.shape[1], image.shape[0]) for image in images], preprocessing)
    return Bandwidth(needed / launch / GIGA, 2 * COPIED / copy / GIGA, launch * 1e3)


def _seconds(cuda: Any, stream: Any, work: Callable[[], object]) -> float:
    """Of one of REPEATS runs, by the GPU's own clock."""
    start, end = cuda.Event(), cuda.Event()
    start.record(stream)
    for _ in range(REPEATS):
        work()
    end.record(stream)
    end.synchronize()
    return float(end.time_since(start)) / 1e3 / REPEATS
