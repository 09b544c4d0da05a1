"""Output to the terminal: streams, log and `echo`, with everything that is not printable escaped.

No text of a file or name can move the cursor or end the run.
"""

from __future__ import annotations

import logging
import sys
import warnings
from io import TextIOWrapper

import click

from trt_cls.text import printable
from trt_cls.urls import redacted


def prepare() -> None:
    """Sets up streams, log and warnings; call it once per process.

    Characters that the terminal can't encode are escaped. Pillow's warnings about damaged files are dropped: such a
    file is refused with a reason, or all of its pixels are there. So is PyTorch's warning that it makes a GPU's context
    in a thread of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return redacted(printable(super().formatMessage(record)))


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints lines, with everything that is not printable escaped. Pass names with line breaks through `printable`."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=err, nl=nl)  # noqa: TID251
