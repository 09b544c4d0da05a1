"""Lack of memory, open files or processes, recognized in the error of any library."""

from __future__ import annotations

import errno
import resource

from trt_cls.errors import causes, one_line

MEMORY = (
    "allocate memory", "failed to map segment", "bad_alloc", "bad allocation", "out of memory", "unable to mmap",
)  # fmt: skip
FILES = ("too many open files",)
PROCESSES = ("can't start new thread",)


def shortage(error: BaseException | None) -> str | None:
    """The message if `error` or one of its causes is a lack of some resource, else None."""
    for found in causes(error):
        line = one_line(found)
        number = getattr(found, "errno", None)
        if isinstance(found, MemoryError) or number == errno.ENOMEM or _mentions(line, MEMORY):
            return _line("memory", line, resource.RLIMIT_AS, "-v")
        if number in (errno.EMFILE, errno.ENFILE) or _mentions(line, FILES):
            return _line("open files", line, resource.RLIMIT_NOFILE, "-n")
        if _mentions(line, PROCESSES):
            return _line("memory or processes", line, resource.RLIMIT_AS, "-v and -u")
        if isinstance(found, SystemError) and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return _line("memory", line, resource.RLIMIT_AS, "-v")  # an extension module that lost its MemoryError
    return None


def _mentions(line: str, words: tuple[str, ...]) -> bool:
    return any(word in line.lower() for word in words)


def _line(what: str, line: str, kind: int, flag: str) -> str:
    limit = resource.getrlimit(kind)[0]
    shown = "" if limit == resource.RLIM_INFINITY else f"{limit:,}" + (" bytes" if kind == resource.RLIMIT_AS else "")
    found = f"limited to {shown}" if shown else "not limited here"
    return (
        f"too little {what} ({line[:200]}), {found}; expected enough for this command; raise the limit (ulimit "
        f"{flag}), or lower batch size and workers"
    )
