"""`trt-cls compare`: parity of two model files on the same images."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.engine_options import provider_option
from trt_cls.cli.options import common_options, spec_options
from trt_cls.errors import EngineError, RequestError

if TYPE_CHECKING:
    from trt_cls.engines.engine import Provider
    from trt_cls.evaluation.compare import Comparison

MOST_CHANGES = 20
"""Images with other labels that are printed."""


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of images; default: eval_config.eval_dataset_path."
)
@spec_options(required=False)
@click.option("--max-diff", type=click.FloatRange(min=0), help="Fail where a probability differs by more.")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), help="Fail where a smaller share of images keeps its label."
)
@provider_option
@common_options
def command(
    a: Path,
    b: Path,
    images: Path | None,
    spec: Path | None,
    overrides: tuple[str, ...],
    max_diff: float | None,
    min_agreement: float | None,
    provider: Provider,
) -> Comparison:
    """Hold two artefacts against each other on the same images."""
    from trt_cls.data.folder import list_images
    from trt_cls.engines import open_engine
    from trt_cls.engines.contracts import read_contract
    from trt_cls.evaluation.compare import compare, require_same_meaning

    require_same_meaning(read_contract(a), read_contract(b))
    paths = list_images(_images(images, spec, overrides, a))
    with closing(open_engine(a, provider)) as engine_a, closing(open_engine(b, provider)) as engine_b:
        click.echo(f"A: {a} ({engine_a.backend})\nB: {b} ({engine_b.backend})")
        comparison = compare(engine_a, engine_b, paths)
    _print(comparison)
    _hold_bounds(comparison, max_diff, min_agreement)
    return comparison


def _images(images: Path | None, spec: Path | None, overrides: tuple[str, ...], model: Path) -> Path:
    from trt_cls.engines.contracts import read_contract
    from trt_cls.evaluation.agreement import require_spec_fits
    from trt_cls.spec import load

    if spec is None:
        if images is None:
            raise RequestError("no images to compare on; expected --images DIR, or -e SPEC with an eval_config")
        return images
    experiment = load(spec, overrides=overrides, needs=() if images else ("eval_config",), paths=False)
    require_spec_fits(experiment, spec, read_contract(model), model)
    return images or Path(experiment.eval_config.eval_dataset_path if experiment.eval_config else "")


def _print(comparison: Comparison) -> None:
    from trt_cls.evaluation.tables import skipped_lines

    click.echo(f"images               {comparison.images}, {len(comparison.skipped)} skipped")
    click.echo(f"top-1 agreement      {comparison.top1_agreement:.2%}, {len(comparison.changed)} labels changed")
    click.echo(f"max |Δprobability|   {comparison.max_abs_difference:.3g}, 99 % of images ≤ {comparison.p99:.3g}")
    for change in comparison.changed[:MOST_CHANGES]:
        click.echo(f"  {click.format_filename(change.path)}: A {change.label_a}, B {change.label_b}")
    if len(comparison.changed) > MOST_CHANGES:
        click.echo(f"  … and {len(comparison.changed) - MOST_CHANGES} more")
    click.echo(skipped_lines(comparison.skipped), err=True, nl=False)


def _hold_bounds(comparison: Comparison, max_diff: float | None, min_agreement: float | None) -> None:
    # Written so that NaN is out of bounds.
    if max_diff is not None and not comparison.max_abs_difference <= max_diff:
        raise EngineError(
            f"max |Δprobability| is {comparison.max_abs_difference:.3g}; expected at most {max_diff:g} (--max-diff); "
            "export the model again, or widen the bound"
        )
    if min_agreement is not None and not comparison.top1_agreement >= min_agreement:
        raise EngineError(
            f"top-1 agreement is {comparison.top1_agreement:.4f}; expected at least {min_agreement:g} "
            "(--min-agreement); export the model again, or lower the bound"
        )
