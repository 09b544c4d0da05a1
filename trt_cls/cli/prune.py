"""`trt-cls prune`: removes the filters with the smallest norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls.cli.options import PATH, common_options, model_option, results_option
from trt_cls.errors import MissingDependency
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.pruning.prune import Pruned

COUNT = click.IntRange(min=1)
EQUALIZATIONS = ("union", "intersection", "arithmetic_mean", "geometric_mean")


@click.command(name="prune", context_settings={"show_default": True})
@model_option(required=True, description="Checkpoint (.safetensors).")
@click.option("-o", "--output", "--output_file", type=PATH, help="Checkpoint to write.")
@click.option(
    "-pth",
    "--threshold",
    "--pruning_threshold",
    type=float,
    help="Remove filters whose normalized norm is at most this.  [default: 0.1]",
)
@click.option("--target-flops", "target", type=float, help="Share of multiply-adds to keep, instead of a threshold.")
@click.option(
    "-eq",
    "--equalization",
    "--equalization_criterion",
    type=click.Choice(EQUALIZATIONS),
    default="union",
    help="How to combine the norms of layers that must keep the same filters.",
)
@click.option(
    "-pg",
    "--granularity",
    "--pruning_granularity",
    type=COUNT,
    default=8,
    help="Keep a multiple of this number of filters.",
)
@click.option(
    "-nf",
    "--min-filters",
    "--min_num_filters",
    type=COUNT,
    default=16,
    help="Minimum number of filters per layer.",
)
@click.option(
    "-n",
    "--normalizer",
    type=click.Choice(["max", "L2"]),
    default="max",
    help="Divide norms by the layer's largest (max), or by their root mean square (L2).",
)
@click.option(
    "-el",
    "--excluded-layers",
    "--excluded_layers",
    "excluded",
    multiple=True,
    metavar="LAYERS",
    help="Layers to leave unpruned, separated by spaces or commas. Repeatable.",
)
@click.argument("more_layers", nargs=-1, metavar="")
@click.option("--dry-run", is_flag=True, help="Show what would be removed; write nothing.")
@click.option(
    "--latency/--no-latency",
    default=None,
    help="Measure ONNX Runtime's latency on this CPU.  [default: unless --dry-run]",
)
@results_option(required=False)
@common_options
def command(
    model: Path,
    output: Path | None,
    threshold: float | None,
    target: float | None,
    excluded: tuple[str, ...],
    more_layers: tuple[str, ...],
    dry_run: bool,
    latency: bool | None,
    results: Path | None,
    **rules: Any,
) -> None:
    """Remove the weakest filters of a network, by TAO's rules.

    Retrain the result with train: name it as train_config.pretrained_model_path.
    """
    if output is None and not dry_run:
        raise click.UsageError("no -o FILE to write to; name one, or use --dry-run")
    if threshold is not None and target is not None:
        raise click.UsageError("-pth and --target-flops both decide how much is removed; leave one of them out")
    if more_layers and not excluded:
        raise click.UsageError(f'"{more_layers[0]}" belongs to no flag; name layers to exclude after -el')
    from trt_cls.files import results_folder
    from trt_cls.pruning.prune import prune
    from trt_cls.pruning.selection import Criteria

    if results is not None:
        results_folder(results)
    names = tuple(name for given in (*excluded, *more_layers) for name in given.split(",") if name)
    criteria = Criteria(threshold=0.1 if threshold is None else threshold, excluded=names, **rules)
    measure = latency if latency is not None else not dry_run and _can_measure()
    pruned = prune(model, None if dry_run else output, criteria, target=target, latency=measure)
    _print(pruned)
    if results is not None:
        _write(results, pruned)
    if output is not None and not dry_run:
        echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
        echo(f'next: trt-cls train -e SPEC -r DIR --set train_config.pretrained_model_path="{output}"')


def _can_measure() -> bool:
    from importlib.util import find_spec

    if find_spec("onnxruntime") and find_spec("onnxscript"):
        return True
    echo(str(MissingDependency("onnxruntime", "measuring the latency", "cpu")), err=True)
    return False


def _print(pruned: Pruned) -> None:
    width = max(len(name) for name in pruned.filters)
    echo(f"{'layer':{width}}  filters")
    for name, (before, after) in pruned.filters.items():
        echo(f"{name:{width}}  {before:5} → {after:5}  {pruned.unprunable.get(name, '')}".rstrip())
    weights, work = pruned.parameters, pruned.multiply_adds
    echo(f"\nthreshold      {pruned.threshold:g}")
    echo(f"parameters     {weights.before:,.0f} → {weights.after:,.0f} ({weights.ratio:.1%})")
    echo(f"multiply-adds  {work.before / 1e6:,.1f} M → {work.after / 1e6:,.1f} M ({work.ratio:.1%})")
    if pruned.latency:
        slow, fast = (seconds * 1e3 for seconds in pruned.latency)
        echo(f"latency        {slow:.2f} ms → {fast:.2f} ms ({slow / fast:.2f}×; ONNX Runtime, CPU, one image)")
    if weights.ratio == 1:
        echo(_nothing_removed(pruned))


def _nothing_removed(pruned: Pruned) -> str:
    if pruned.unprunable.keys() >= pruned.filters.keys():
        return "nothing was removed: no layer may lose filters, for the reasons above"
    return (
        f"nothing was removed: too few filters have a norm of at most {pruned.threshold:g}; name a size instead, as "
        "--target-flops 0.7 for 70 % of the multiply-adds, or lower -pg and -nf"
    )


def _write(results: Path, pruned: Pruned) -> None:
    from trt_cls.files import write_text

    content = {
        "threshold": pruned.threshold,
        "pruning_ratio": pruned.parameters.ratio,
        "parameters": pruned.parameters,
        "multiply_adds": pruned.multiply_adds,
        "latency_seconds": pruned.latency,
        "filters": pruned.filters,
        "unprunable": dict(pruned.unprunable),
    }
    write_text(results / "pruning.json", json.dumps(content, indent=1, ensure_ascii=False))
