"""Asks the system to read shards in one go before their images are read from all over them.

An image is read at its place, and a disk that seeks for each is no faster than one with a file for each. Does not know:
where images lie in a shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from trt_cls.data.order import WINDOW
from trt_cls.data.samples import Sample, Samples
from trt_cls.files import regular_file

SHARE = 2
"""Read ahead is what fits this part of the machine's memory, a half, with the other shards of its window."""
STEP = 2**23


class ReadAhead:
    """Reads each shard ahead when its first image is expected, where the images come shard by shard."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._ordered = isinstance(samples, Samples) and samples.groups is not None and hasattr(os, "posix_fadvise")
        self._seen: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "trt-cls-read-ahead")

    def expect(self, samples: Iterable[Sample]) -> None:
        """These images are read next."""
        if not self._ordered:
            return
        for sample in samples:
            if sample.part and sample.part.file not in self._seen:
                self._seen.add(sample.part.file)
                self._thread.submit(_read, sample.part.file)

    def close(self) -> None:
        """Gives up what is not read yet."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _read(path: Path) -> None:
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE // WINDOW
    with suppress(OSError), regular_file(path) as (descriptor, size):
        for start in range(0, size if size <= most else 0, STEP):
            os.posix_fadvise(descriptor, start, STEP, os.POSIX_FADV_WILLNEED)
