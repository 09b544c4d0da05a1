"""`trt-cls benchmark`: the speed of each stage from image files to answers, and which one limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import PATH, batch_option, common_options, executor_option, provider_option, results_option
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.engines.backends import Provider
    from trt_cls.evaluation.answers import Executor
    from trt_cls.evaluation.benchmark import Benchmark, Wanted

BATCH_SIZE = 32


@click.command("benchmark")
@click.argument("model", type=PATH)
@click.option(
    "--stage",
    "wanted",
    type=click.Choice(["all", "decode", "preprocess", "engine"]),
    default="all",
    show_default=True,
    help="What to measure; all: each stage alone, then the pipeline.",
)
@click.option("--images", type=PATH, help="Folder of images. Left out: pictures made for it.")
@click.option("--workers", type=click.IntRange(min=0), help="Threads that load images.  [default: one for each core]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Most that a figure takes, or a batch.",
)
@batch_option
@provider_option
@executor_option
@results_option(required=False)
@common_options
def command(
    model: Path,
    wanted: Wanted,
    images: Path | None,
    workers: int | None,
    seconds: float,
    batch_size: int | None,
    provider: Provider,
    executor: Executor,
    results: Path | None,
) -> None:
    """Measure the speed of each stage from image files to answers, and which one limits."""
    import json
    import os

    from trt_cls.data.folder import Sample, list_images
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.benchmark import benchmark
    from trt_cls.evaluation.stages import write_pictures
    from trt_cls.files import results_folder, write_text

    if results:
        results_folder(results)
    with TemporaryDirectory() as folder, closing(open_engine(model, provider)) as engine, _shown() as progress:
        paths = list_images(images) if images else write_pictures(Path(folder))
        measured = benchmark(
            engine,
            [Sample(path) for path in paths],
            batch_size=batch_size or BATCH_SIZE,
            workers=os.cpu_count() or 1 if workers is None else workers,
            wanted=wanted,
            executor=executor,
            seconds=seconds,
            progress=progress,
        )
    source = f"{len(paths)} images of {images}" if images else f"{len(paths)} generated JPEG pictures of 500×375"
    _print(measured, model, source)
    if results:
        text = json.dumps({"model": str(model), "images": source, **measured.to_dict()}, indent=2)
        write_text(results / "benchmark.json", text + "\n")
        echo(f"written: {results / 'benchmark.json'}")


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows on a terminal what is measured."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda doing: None
        return
    with console.status("benchmark") as status:
        yield lambda doing: status.update(f"benchmark: {doing}")


def _print(measured: Benchmark, model: Path, source: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trt_cls.text import printable

    table = Table(title=escape(printable(f"{model.name} on {source}")), title_justify="left")
    table.add_column("")
    for column in ("images/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for stage in measured.stages:
        figures = f"{stage.images_per_second:,.0f}", f"{stage.p50_ms:.2f}", f"{stage.p99_ms:.2f}"
        table.add_row(stage.stage, *figures)
    Console(width=80).print(table)
    echo(
        f"engine: {measured.backend}, {measured.precision}; images prepared by {measured.executor}; "
        f"batch {measured.batch_size}, {measured.workers} threads"
    )
    echo(f"images/s: batch after batch, median of {measured.rounds} rounds; p50, p99: one batch of that size by itself")
    if measured.limit:
        shared = " (images and network share the cores)" if measured.backend.endswith("-cpu") else ""
        share = f"{measured.share_of_limit:.0%}"
        echo(f"limit: {measured.limit.stage}{shared}; the pipeline reaches {share} of its speed alone")
    if kernel := measured.kernel:
        echo(
            f"kernel: {kernel.kernel:,.0f} GB/s, {kernel.share:.0%} of the {kernel.copy:,.0f} GB/s of a copy on the "
            f"GPU; {kernel.launch_ms:.3f} ms a batch"
        )
