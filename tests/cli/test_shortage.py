"""Want of memory, of descriptors or of processes is one line with exit 1, whichever library stumbles over it."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from trt_cls.cli import main, shortage
from trt_cls.errors import ArtefactError

SHORT = {
    "torch, importing": (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory", "-v"),
    "torch, a tensor": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory", "-v"),
    "numpy": (MemoryError("Unable to allocate 9 GiB"), "memory", "-v"),
    "the system": (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory", "-v"),
    "files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files", "-n"),
    "a library and files": (
        ImportError("x.so: cannot open shared object file: Too many open files"),
        "open files",
        "-n",
    ),
    "threads": (RuntimeError("can't start new thread"), "memory or processes", "-v and -u"),
}


@pytest.mark.parametrize("case", list(SHORT))
def test_what_is_short_is_named_with_its_limit(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, what, flag = SHORT[case]

    def fail(*_: object, **__: object) -> None:
        raise ValueError("what came of it") from error

    monkeypatch.setattr("trt_cls.cli.program.main", fail)
    assert main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: too little {what} (")
    assert f"(ulimit {flag})" in line


def test_the_limit_itself_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_000_000, 1_000_000))
    assert "limited to 1,000,000 bytes;" in str(shortage(MemoryError()))
    assert shortage(SystemError("returned NULL without setting an exception"))


def test_a_file_that_memory_was_too_small_for_is_no_wrong_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArtefactError("model.onnx: can't be loaded") from RuntimeError("initialization: std::bad_alloc")

    monkeypatch.setattr("trt_cls.cli.program.main", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("error: too little memory (initialization: std::bad_alloc)")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("memory of it"),
        OSError(errno.EACCES, "Permission denied"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),  # a lock that is taken
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert shortage(error) is None
