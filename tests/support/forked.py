"""Processes that start at once: forked from one that has imported torch, as many as torchrun would start.

For what processes do together; that torchrun and `--gpus` start them is tested where that is the promise.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = "trt_cls"
"""`python -m trt_cls`; else the path of a program."""


class Ended(NamedTuple):
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """Begins processes and waits for them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forking_program.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: Sequence[object], program: object = PROGRAM, typed: bytes = b"", **given: Any) -> int:
        """Begins a process and returns its number; `given` may hold `environment`, `folder` and `errors`, a file."""
        place = self._folder / str(next(self._numbers))
        place.with_suffix(".in").write_bytes(typed)
        files = {name: f"{place}.{name}" for name in ("output", "errors")} | {"input": f"{place}.in"}
        request = {"environment": {}, "folder": str(self._folder), **files, **given}
        return self._ask({**request, "program": str(program), "arguments": [str(word) for word in arguments]})

    def wait(self, process: int) -> int:
        """Its exit status, negative for a signal."""
        return self._ask({"wait": process})

    def run(self, processes: int, arguments: Sequence[object], program: object = PROGRAM, **given: Any) -> Ended:
        """Runs `arguments` in so many processes of one group; their output in the order of their numbers."""
        first, environment = next(self._numbers), dict(given.pop("environment", {}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outputs = [[str(self._folder / f"{first}-{rank}.{kind}") for rank in range(processes)] for kind in "oe"]
        started = []
        for rank in range(processes):
            if processes > 1:
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
                environment |= {"LOCAL_WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            files = {"output": outputs[0][rank], "errors": outputs[1][rank]}
            started.append(self.start(arguments, program, environment=dict(environment), **files, **given))
        statuses = [self.wait(process) for process in started]
        out, err = ("".join(Path(name).read_text(errors="surrogateescape") for name in names) for names in outputs)
        return Ended(max(statuses, key=abs), out, err)

    def close(self) -> None:
        self._server.communicate(timeout=100)

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextmanager
def forked(folder: Path) -> Iterator[Forked]:
    """`Forked`, whose files lie in `folder`."""
    running = Forked(folder)
    yield running
    running.close()
