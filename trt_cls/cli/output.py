"""What commands print."""

from __future__ import annotations

import click

from trt_cls.text import printable


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints lines, with what is not printable escaped. A name that may hold a line break is `printable` before."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=err, nl=nl)
