"""Python processes that import only what is installed or on PYTHONPATH, nothing from the folder they are started in.

`python -c` and `python -m` put the current folder first on `sys.path`, and so does multiprocessing for the servers that
it starts: a `random.py` lying there would be executed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# `sys` is compiled into Python: no file can take its place.
_LEAVE_OUT = "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
MAIN_CODE = f"{_LEAVE_OUT}from trt_cls.cli import main; sys.exit(main())"
"""The command line as `python -c MAIN_CODE ARGUMENTS`."""
SAFE_PATH = "PYTHONSAFEPATH"
"""The environment variable that leaves the current folder out, from Python 3.11 on."""


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs `code` in a Python process of its own; `sys` is imported there."""
    return [sys.executable, "-c", _LEAVE_OUT + code, *arguments]


def start_forkserver(preload: Sequence[str]) -> None:
    """Starts the server from which multiprocessing forks processes, if it does not run, with modules `preload`."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(list(preload))
    with _without_current_folder():
        resource_tracker.ensure_running()
        forkserver.ensure_running()


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """Python processes started in the block do not look for modules in the current folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    old = not hasattr(sys.flags, "safe_path")
    folder = os.getcwd() if old else ""
    if old:  # what the server forks goes back to this process's folder
        os.chdir(os.path.dirname(os.__file__))
    try:
        yield
    finally:
        if old:
            os.chdir(folder)
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
