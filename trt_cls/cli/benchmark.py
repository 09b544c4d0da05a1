"""`trt-cls benchmark`: the speed of each stage from image files to answers, and which limits; LoadGen's scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from trt_cls.cli.options import (
    PATH,
    Finite,
    batch_option,
    common_options,
    executor_option,
    provider_option,
    results_option,
)
from trt_cls.cli.processes import fastest_engine
from trt_cls.errors import EngineError, RequestError
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_cls.data.folder import Sample
    from trt_cls.engines.backends import Provider
    from trt_cls.engines.engine import Engine
    from trt_cls.evaluation.benchmark import Benchmark, Wanted
    from trt_cls.evaluation.inference import Executor
    from trt_cls.evaluation.loadgen import Judged, Load, Scenario

BATCH_SIZE = 32
SECONDS, SECONDS_OF_LOAD = 2.0, 10.0


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
@click.option("--images", type=PATH, help="Folder or shards of images.  [default: generated pictures]")
@click.option("--workers", type=click.IntRange(min=0), help="Threads that load images.  [default: one per core]")
@click.option(
    "--seconds",
    type=Finite(min=0),
    help=f"Longest time of a measurement; with --scenario, the shortest run.  [default: {SECONDS:g}; "
    f"{SECONDS_OF_LOAD:g} with --scenario]",
)
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "multi-stream", "offline", "server"]),
    help="Measure under the load of MLPerf's LoadGen instead: one image at a time, eight at a time, all at once, or at "
    "random times. Not an MLPerf result.",
)
@click.option(
    "--target-qps",
    type=Finite(min=0, min_open=True),
    metavar="RATE",
    help="Images per second that server sends on average, or that offline plans its run for.",
)
@click.option(
    "--target-latency",
    type=Finite(min=0, min_open=True),
    metavar="MS",
    help="For server: latency that 99 % of the images must keep.  [default: 100]",
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
    seconds: float | None,
    scenario: Scenario | None,
    target_qps: float | None,
    target_latency: float | None,
    batch_size: int | None,
    provider: Provider,
    executor: Executor,
    results: Path | None,
) -> None:
    """Measure the speed of each stage from image files to answers, and which one limits.

    --stage engine measures the network alone, on tensors in memory.
    """
    import os

    from trt_cls.data.folder import listed_images
    from trt_cls.evaluation.stages import write_pictures
    from trt_cls.files import results_folder

    load = _load(scenario, target_qps, target_latency, seconds, wanted)
    if results:
        results_folder(results)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        if images is None:
            write_pictures(Path(folder))
        samples = listed_images(images or Path(folder))
        source = f"{len(samples)} " + (f"images of {images}" if images else "generated JPEG pictures of 500×375")
        engine = stack.enter_context(closing(_fastest(model, provider, samples)))
        how = {
            "batch_size": batch_size or BATCH_SIZE,
            "workers": os.cpu_count() or 1 if workers is None else workers,
            "executor": executor,
        }
        if load is None:
            _measure_stages(engine, samples, model, source, results, wanted=wanted, seconds=seconds, **how)
        else:
            logs = results / "loadgen" / load.scenario if results else Path(folder) / "loadgen"
            _measure_load(engine, samples, load, logs, model, source, results, tensors=wanted == "engine", **how)


def _load(
    scenario: Scenario | None,
    target_qps: float | None,
    target_latency: float | None,
    seconds: float | None,
    wanted: Wanted,
) -> Load | None:
    """What LoadGen is asked for; None: it is not."""
    from trt_cls.evaluation.loadgen import RATED, Load, import_loadgen

    for flag, value, meant in (("--target-qps", target_qps, RATED), ("--target-latency", target_latency, ("server",))):
        if value is not None and scenario not in meant:
            found = f"--scenario {scenario}" if scenario else "no --scenario"
            raise RequestError(f"{flag} with {found}; expected --scenario {' or '.join(meant)}; leave it out")
    if scenario is None:
        return None
    if wanted not in ("all", "engine"):
        raise RequestError(
            f"--scenario {scenario} with --stage {wanted}; expected --stage all, from image files, or engine, from "
            "tensors; leave one of the two out"
        )
    if scenario == "server" and target_qps is None:
        raise RequestError(
            "--scenario server sends images at a rate, and none is given; expected --target-qps RATE; begin with half "
            "of the images/s of --scenario offline"
        )
    import_loadgen()
    return Load(scenario, SECONDS_OF_LOAD if seconds is None else seconds, target_qps, target_latency)


def _fastest(model: Path, provider: Provider, samples: Sequence[Sample]) -> Engine:
    def images() -> NDArray[Any] | None:
        from trt_cls.export.int8_on_cpu import first_images

        return first_images(samples, read_contract(model).preprocessing, more=False)

    from trt_cls.artefacts.model_file import read_contract

    return fastest_engine(model, provider, None, images, partial(echo, err=True))


def _measure_stages(
    engine: Engine,
    samples: Sequence[Sample],
    model: Path,
    source: str,
    results: Path | None,
    *,
    seconds: float | None,
    **how: Any,
) -> None:
    from trt_cls.evaluation.benchmark import benchmark

    with _shown() as progress:
        measured = benchmark(engine, samples, seconds=SECONDS if seconds is None else seconds, progress=progress, **how)
    _print(measured, model, source)
    _write(results, "benchmark.json", model, source, measured.to_dict())


def _measure_load(
    engine: Engine,
    samples: Sequence[Sample],
    load: Load,
    logs: Path,
    model: Path,
    source: str,
    results: Path | None,
    **how: Any,
) -> None:
    """Raises an EngineError where LoadGen's verdict is that the run is not valid."""
    from trt_cls.evaluation.loadgen import drive, opened_queries

    logs.mkdir(parents=True, exist_ok=True)
    with opened_queries(engine, samples, **how) as queries, _shown() as progress:
        progress(f"{load.scenario}, {load.seconds:g} s at least")
        judged = drive(queries.run, len(queries.samples), queries.batch_size, load, logs)
    fed = f"{'tensors' if how['tensors'] else 'image files'}, {len(queries.samples)} of {source}"
    _print_judged(
        judged, model, fed, f"{engine.backend}, {engine.contract.precision}; batches of up to {queries.batch_size}"
    )
    known = {"backend": engine.backend, "precision": engine.contract.precision, "batch_size": queries.batch_size}
    _write(results, f"benchmark_{load.scenario}.json", model, fed, {**known, **judged.to_dict()})
    if not judged.valid:
        raise EngineError(
            f"LoadGen's verdict on {load.scenario} is INVALID: {judged.reason} Expected VALID; take more --seconds, or "
            "another --target-qps or --target-latency"
        )


def _write(results: Path | None, name: str, model: Path, source: str, found: Mapping[str, Any]) -> None:
    import json

    from trt_cls.files import write_text

    if results:
        text = json.dumps({"model": str(model), "images": source, **found}, indent=2)
        write_text(results / name, text + "\n")
        echo(f"written: {results / name}")


def _print_judged(judged: Judged, model: Path, source: str, engine: str) -> None:
    from trt_cls.text import printable

    echo(f"{printable(model.name)} by LoadGen {judged.version}, {judged.scenario}, from {printable(source)}")
    echo(f"verdict    {'VALID' if judged.valid else 'INVALID'} ({judged.label})")
    echo(f"speed      {judged.images_per_second:,.1f} images/s, {judged.queries:,} queries")
    echo("latency    " + ", ".join(f"{name} {value:.2f} ms" for name, value in judged.percentiles_ms.items()))
    echo(f"settings   {', '.join(judged.in_words)}")
    echo(f"engine     {engine}")


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
