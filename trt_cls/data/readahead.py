"""Reads shards in one go before their images are read from all over them.

An image is read at its place, and a disk that seeks for each is no faster than one with a file for each: the system is
asked to read a shard ahead. One in an object store is copied, and those of the next window too. Does not know: where
images lie in a shard.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Semaphore, Thread

import numpy as np

from trt_cls.data.order import WINDOW
from trt_cls.data.samples import Sample, Samples
from trt_cls.errors import TrtClsError
from trt_cls.files import regular_file
from trt_cls.preprocessing.image_file import OpenShard, Part
from trt_cls.urls import StorePath

SHARE = 2
"""Read ahead is what fits this part of the machine's memory, a half, with the other shards of its window."""
STEP = 2**23
COPIES = 4
"""Shards of a store that are copied at once."""


class ReadAhead:
    """Reads each shard ahead when its first image is expected, where the images come shard by shard."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._ordered = isinstance(samples, Samples) and samples.groups is not None and hasattr(os, "posix_fadvise")
        first = samples[0].part if self._ordered and len(samples) else None
        self.copies = first is not None and isinstance(first.file, StorePath)
        """Whether the shards are in a store."""
        self._seen: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "trt-cls-read-ahead")
        self._coming: deque[Part] = deque()
        self._asked = 0
        self._held: deque[OpenShard] = deque(maxlen=3 * WINDOW)
        self._slots, self._closed = Semaphore(COPIES), False

    def comes(self, samples: Samples) -> None:
        """The images that are expected, in this order: copies are made a window ahead."""
        assert samples.groups is not None
        _, places = np.unique(samples.groups, return_index=True)
        self._coming.extend(sample.part for sample in samples.at(np.sort(places)) if sample.part)

    def expect(self, samples: Iterable[Sample]) -> None:
        """These images are read next."""
        if not self._ordered:
            return
        for sample in samples:
            if sample.part and sample.part.file not in self._seen:
                self._seen.add(sample.part.file)
                if not self.copies:
                    self._thread.submit(_read, sample.part.file)
                while self._coming and self._asked < len(self._seen) + WINDOW:
                    self._asked += 1
                    # a thread that the end of the process does not wait for
                    Thread(target=self._copy, args=(self._coming.popleft(),), daemon=True).start()

    def close(self) -> None:
        """Drops what is not read yet."""
        self._closed = True
        self._coming.clear()
        self._held.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _copy(self, part: Part) -> None:
        with self._slots, suppress(TrtClsError, OSError):  # whoever reads it reports it
            if not self._closed:
                self._held.append(OpenShard(part))


def _read(path: Path) -> None:
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE // WINDOW
    with suppress(OSError), regular_file(path) as (descriptor, size):
        for start in range(0, size if size <= most else 0, STEP):
            os.posix_fadvise(descriptor, start, STEP, os.POSIX_FADV_WILLNEED)
