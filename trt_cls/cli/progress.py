"""A bar on the terminal for work that takes a while; nothing where nobody looks on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many images were done since it was last told; `total` None: nobody knows.

    The bar stands on stderr, where that is a terminal, and goes when the work is done.
    """
    if not sys.stderr.isatty():
        yield lambda images: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda images: bar.advance(task, images)
