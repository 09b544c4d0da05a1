"""`trt-cls choose`: all precisions of a network in one table, and the one to ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls.cli.options import (
    COUNT,
    PATH,
    Finite,
    common_options,
    model_option,
    provider_option,
    refuse_others,
    results_option,
    spec_options,
)
from trt_cls.errors import RequestError, TrtClsError
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.choice.decision import Limits, Measured, Outcome
    from trt_cls.engines.backends import Provider

VARIANTS = ("fp32", "fp16", "int8", "auto", "fp8")
DEFAULT = "fp32,fp16,int8,auto"
PRINTED = ("variant", "provider", "top-1", "loss", "p", "8 bits", "MB", "p99 ms", "images/s")
"""What fits a terminal of 80 characters; the files have all columns."""


class Quantity(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number with its unit, as a multiple of the last unit."""

    def __init__(self, name: str, example: str, units: dict[str, float]) -> None:
        self.name, self.example, self.units = name, example, units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: D102
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?([A-Za-z]+)", str(value).strip())
        unit = next((factor for name, factor in self.units.items() if found and name.lower() == found[2].lower()), None)
        if found is None or unit is None or float(found[1]) * unit == float("inf"):
            self.fail(f'"{value}": expected a number with one of {", ".join(self.units)}, such as {self.example}')
        return float(found[1]) * unit


MEASURING = ("spec", "overrides", "images", "calibration", "variants", "pruned", "batch_size", "seconds")
LATENCY = Quantity("time", "5ms", {"us": 1e-3, "ms": 1.0, "s": 1e3})
SIZE = Quantity("size", "20MB", {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30})


def _variants(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in VARIANTS:
            raise click.BadParameter(f'"{name}" is unknown; expected some of {", ".join(VARIANTS)}, with commas')
    return names


@click.command("choose")
@model_option(required=False, description="Checkpoint (.safetensors) in FP32.")
@spec_options(required=False)
@results_option(required=False)
@click.option("--images", type=PATH, help="Labeled images.  [default: the spec's evaluation images]")
@click.option("--calibration-images", "calibration", type=PATH, help="For INT8.  [default: the spec's training images]")
@click.option(
    "--variants",
    callback=_variants,
    default=DEFAULT,
    help="Some of fp32, fp16, int8, fp8 and auto (a format for each layer).",
)
@click.option("--pruned", type=PATH, multiple=True, help="A pruned checkpoint of the same task. Repeatable.")
@click.option("--from", "table", type=PATH, help="Decide from this choose.csv, without measuring.")
@click.option("--max-loss", type=Finite(min=0), default=0.5, help="Largest loss of top-1, in points.")
@click.option("--max-latency", type=LATENCY, metavar="5ms", help="Largest latency of one image, 99th percentile.")
@click.option("--max-size", type=SIZE, metavar="20MB", help="Largest file that runs: ONNX or engine.")
@click.option("-b", "--batch-size", "--batch_size", type=COUNT, default=32, help="Batch size for the throughput.")
@click.option("--seconds", type=Finite(min=0), default=2.0, help="Longest time of a measurement of speed.")
@provider_option
@common_options
@click.pass_context
def command(
    context: click.Context,
    model: Path | None,
    spec: Path | None,
    overrides: tuple[str, ...],
    results: Path | None,
    images: Path | None,
    calibration: Path | None,
    variants: tuple[Any, ...],
    pruned: tuple[Path, ...],
    table: Path | None,
    max_loss: float,
    max_latency: float | None,
    max_size: float | None,
    batch_size: int,
    seconds: float,
    provider: Provider,
) -> Outcome:
    """Make a network in all precisions, measure each, and choose one within limits.

    The fastest variant within the limits is chosen, among those on --provider, or among all with auto. A second call
    continues where the first one stopped.
    """
    from trt_cls.choice.decision import Limits
    from trt_cls.choice.measure import Request, measure
    from trt_cls.choice.table import read_rows
    from trt_cls.files import results_folder
    from trt_cls.spec import load

    if (model is None) == (table is None):
        raise click.UsageError("name what to choose from: -m CHECKPOINT, or --from choose.csv, one of them")
    if model and results is None:
        raise click.UsageError("-m makes files and needs a folder for them; add -r DIR")
    limits = Limits(max_loss, max_latency, None if max_size is None else round(max_size))
    notes: list[str] = []
    if results:
        results_folder(results)
    if table:
        refuse_others(context, "table", *MEASURING)
        rows = read_rows(table)
    else:
        assert model
        assert results
        experiment = load(spec, overrides=overrides) if spec else None
        request = Request(
            model, results, variants, pruned, experiment, images, calibration, max_loss, batch_size, seconds
        )
        rows, notes = measure(request, echo)
    return _decided(rows, limits, provider, notes, results, str(model or table))


def _decided(
    rows: list[Measured], limits: Limits, provider: Provider, notes: list[str], results: Path | None, title: str
) -> Outcome:
    """Prints the table and the choice, and writes the reports; refuses where nothing fits."""
    from trt_cls.choice.decision import decide
    from trt_cls.choice.page import choice_page
    from trt_cls.choice.table import markdown, write_rows
    from trt_cls.files import write_text

    there = list(dict.fromkeys(row.provider for row in rows))
    if provider not in ("auto", *there):
        raise RequestError(f"--provider {provider}: nothing was measured on it; expected {' or '.join(there)}")
    decision = decide(rows, limits, provider)
    _print(decision, rows, notes)
    if results:
        write_rows(results / "choose.csv", rows)
        write_text(results / "choose.md", markdown(decision, rows, notes))
        write_text(results / "choose.html", choice_page(decision, rows, limits, notes, title))
        echo("written: " + ", ".join(str(results / f"choose.{kind}") for kind in ("csv", "md", "html")))
    if decision.chosen is None:
        raise TrtClsError(f"no variant fits: {decision.failure}; allow more, or add --variants or --pruned")
    echo(f"chosen: {decision.chosen.label}, {decision.chosen.path}")
    return decision


def _print(decision: Outcome, rows: list[Measured], notes: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    from trt_cls.choice.table import HEADINGS, shown_cells
    from trt_cls.text import printable

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    places = [HEADINGS.index(heading) for heading in PRINTED]
    for place in places:
        table.add_column(HEADINGS[place], justify="left" if place < 2 else "right", overflow="fold")
    for row in decision.rows:
        cells = shown_cells(row, rows)
        table.add_row(*(escape(printable(cells[place])) for place in places))
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, 80) if console.is_terminal else needed
    console.print(table)
    for row, reason in zip(decision.rows, decision.reasons, strict=True):
        echo(f"  {printable(row.label)}: {reason}")
    for note in notes:
        echo(f"  {printable(note)}", err=True)
