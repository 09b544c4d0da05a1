"""Whether a file is written under the one name that is removed after a kill -9."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trt_cls.files import atomic


@contextmanager
def atomic_in_place(path: Path) -> Iterator[Path]:
    """`atomic`; the file must not be replaced, for its lock would be lost, and another name left by kill -9."""
    with atomic(path) as beside:
        made = beside.stat().st_ino
        yield beside
        assert beside.stat().st_ino == made
