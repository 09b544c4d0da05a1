"""A full disk during a training, reported as one error."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from trt_cls import files


def room_for(path: Path, size: int) -> AbstractContextManager[None]:
    """Runs the writing of `path`, about `size` bytes.

    Raises:
        TrtClsError: there is no room for it.
    """
    return files.room_for(path, size, "what was saved before is whole: make room, then go on with --resume")
