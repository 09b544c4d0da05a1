"""Output on a terminal: nothing that a file or a name holds moves the cursor or ends the run."""

from __future__ import annotations

import logging
import sys
import warnings
from io import TextIOWrapper

import click

from trt_cls.text import printable


def prepare() -> None:
    """Sets up the streams, log and warnings of this process; to be called once, when it starts.

    A character that the terminal's encoding lacks is written as an escape. Warnings of the image decoders about damaged
    files are dropped: such a file is refused with a reason, or its pixels are all there.
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


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints lines, with what is not printable escaped. A name that may hold a line break is `printable` before."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=err, nl=nl)
