"""`trt-cls compare`: how far the predictions of two model files differ on the same images."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import PATH, Finite, common_options, provider_option, results_option, spec_options
from trt_cls.errors import EngineError, RequestError
from trt_cls.terminal import echo
from trt_cls.text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trt_cls.data.folder import Sample
    from trt_cls.data.split import Dataset
    from trt_cls.engines.backends import Provider
    from trt_cls.evaluation.compare import Comparison, Verdict

MOST_CHANGES = 20
"""Images with different labels that are printed."""
SIGNIFICANT = 0.05
LAYER_IMAGES = 4
"""Images for the layers: all tensors of both networks are in memory at once, 0.2 GB an image for resnet50."""


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--images", type=PATH, help="Folder or shards of images.  [default: the spec's evaluation images]")
@spec_options(required=False)
@click.option("--max-diff", type=Finite(min=0), help="Fail if a probability differs by more.")
@click.option("--min-agreement", type=Finite(0, 1), help="Fail if a smaller share of images has the same label.")
@click.option(
    "--own-preprocessing", is_flag=True, help="Preprocess the images by each model's own contract, if the two differ."
)
@click.option("--layers", is_flag=True, help="Find the first layer that differs between two ONNX files.")
@results_option(required=False)
@provider_option
@common_options
def command(
    a: Path,
    b: Path,
    images: Path | None,
    spec: Path | None,
    overrides: tuple[str, ...],
    own_preprocessing: bool,
    layers: bool,
    results: Path | None,
    max_diff: float | None,
    min_agreement: float | None,
    provider: Provider,
) -> Comparison:
    """Compare two model files on the same images.

    If the images are in folders named as the classes, McNemar's test says whether one of the two is better; of
    multi-label models, for each label of a folder with labels.csv.
    """
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.data.split import Dataset
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.compare import compare, require_same_meaning, samples_of
    from trt_cls.evaluation.results import write_comparison
    from trt_cls.files import results_folder

    contract, other = read_contract(a), read_contract(b)
    require_same_meaning(contract, other, own_preprocessing=own_preprocessing)
    if layers and contract.differences(other):
        raise RequestError("--layers: the two models have different inputs; expected the same one; leave --layers out")
    source = _images(images, spec, overrides, a)
    if contract.task == "multi":
        source = (source if isinstance(source, Dataset) else Dataset(source)).with_labels_of("multi")
    samples = samples_of(source, contract.classes)
    if results:
        results_folder(results)
    with closing(open_engine(a, provider)) as engine_a, closing(open_engine(b, provider)) as engine_b:
        echo(f"A: {a} ({engine_a.backend})\nB: {b} ({engine_b.backend})")
        for difference in contract.differences(other):
            echo(f"each by its own      {difference}")
        comparison = compare(engine_a, engine_b, samples, own_preprocessing=own_preprocessing)
    _print(comparison)
    if layers:
        _print_layers(a, b, samples)
    if results:
        echo("written: " + ", ".join(str(path) for path in write_comparison(comparison, a, b, results)))
    _check_bounds(comparison, max_diff, min_agreement)
    return comparison


def _images(images: Path | None, spec: Path | None, overrides: tuple[str, ...], model: Path) -> Path | Dataset:
    from trt_cls.data.split import evaluation_dataset
    from trt_cls.evaluation.inference import checked_contract
    from trt_cls.spec import load

    if spec is None:
        if images is None:
            raise RequestError("no images to compare on; expected --images DIR, or -e SPEC with an eval_config")
        return images
    experiment = load(spec, overrides=overrides, needs=() if images else ("eval_config",), paths=False)
    checked_contract(model, experiment, spec)
    return images or evaluation_dataset(experiment) or Path()


def _print(comparison: Comparison) -> None:
    from trt_cls.evaluation.results import skipped_lines

    echo(f"images               {comparison.images}, {len(comparison.skipped)} skipped")
    if comparison.verdicts is None:
        echo(
            f"top-1 agreement      {comparison.top1_agreement:.2%}, {counted(len(comparison.changed), 'label')} changed"
        )
        echo(f"top-{comparison.top_k} agreement      {comparison.top_k_agreement:.2%}, in any order")
    else:
        echo(
            f"same labels          {comparison.top1_agreement:.2%}, {counted(len(comparison.changed), 'image')} changed"
        )
    echo(f"max |Δprobability|   {comparison.max_abs_difference:.3g}, 99 % of images ≤ {comparison.p99:.3g}")
    if comparison.verdict:
        echo(_verdict(comparison.verdict))
    if comparison.verdicts:
        echo(_verdicts(comparison.verdicts))
    for change in comparison.changed[:MOST_CHANGES]:
        truth = "" if change.truth is None else f", is {_named(change.truth)}"
        echo(f"  {printable(change.path)}: A {_named(change.label_a)}, B {_named(change.label_b)}{truth}")
    if len(comparison.changed) > MOST_CHANGES:
        echo(f"  … and {len(comparison.changed) - MOST_CHANGES} more")
    echo(skipped_lines(comparison.skipped), err=True, nl=False)


def _verdict(verdict: Verdict) -> str:
    meaning = "one is better" if verdict.p_value < SIGNIFICANT else "no difference is shown"
    return (
        f"top-1 accuracy       A {verdict.right_a / verdict.images:.2%}, B {verdict.right_b / verdict.images:.2%}\n"
        f"McNemar's test       only A right {verdict.only_a_right}, only B right {verdict.only_b_right}: "
        f"p = {verdict.p_value:.3g}, {meaning}"
    )


def _verdicts(verdicts: Mapping[str, Verdict]) -> str:
    """McNemar's test for each label, smallest p-value first."""
    names = {name: printable(name) for name in verdicts}
    width = max(19, *map(len, names.values()))
    lines = [f"{'label':{width}} {'A right':>8} {'B right':>8} {'only A':>7} {'only B':>7}  McNemar's p"]
    for name, found in sorted(verdicts.items(), key=lambda item: item[1].p_value)[:MOST_CHANGES]:
        lines.append(
            f"{names[name]:{width}} {found.right_a / found.images:8.2%} {found.right_b / found.images:8.2%} "
            f"{found.only_a_right:7} {found.only_b_right:7}  {found.p_value:.3g}"
        )
    if len(verdicts) > MOST_CHANGES:
        lines.append(f"… and {len(verdicts) - MOST_CHANGES} more")
    return "\n".join(lines)


def _named(label: str) -> str:
    return printable(label) or "no label"


def _print_layers(a: Path, b: Path, samples: Sequence[Sample]) -> None:
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.data.stream import stream
    from trt_cls.evaluation.layer_differences import bound, compare_layers, first_beyond, noisiest

    contract = read_contract(a)
    batches = stream(samples, contract.preprocessing, batch_size=LAYER_IMAGES, workers=0)
    differences = compare_layers(a, b, next(batch.images for batch in batches if batch.samples))
    precisions = contract.precision, read_contract(b).precision
    limit = bound(*precisions)
    first = first_beyond(differences, limit)
    if first:
        echo(
            f"first to differ      {first.node} ({first.operation}), tensor {first.tensor}: "
            f"by {first.difference:.2g} of its largest value, {first.largest:.3g}; expected at most {limit:g}"
        )
    else:
        most = max((layer.difference for layer in differences), default=0.0)
        echo(f"layers               {len(differences)} compared, none differs by more than {most:.2g} of its range")
    if {"int8", "fp8"} & set(precisions) and (worst := noisiest(differences)):
        echo(
            f"adds most noise      {worst.node} ({worst.operation}), tensor {worst.tensor}: "
            f"{100 * (worst.noise - worst.added):.2g} % in, {100 * worst.noise:.2g} % out"
        )
    for layer in differences:
        if layer.weights:
            echo(f"  other weights in {layer.node} ({layer.operation}): {', '.join(layer.weights)}")


def _check_bounds(comparison: Comparison, max_diff: float | None, min_agreement: float | None) -> None:
    # `not <=`, so that NaN is out of bounds
    if max_diff is not None and not comparison.max_abs_difference <= max_diff:
        raise EngineError(
            f"max |Δprobability| is {comparison.max_abs_difference:.3g}; expected at most {max_diff:g} (--max-diff); "
            "export the model again, or widen the bound"
        )
    if min_agreement is not None and not comparison.top1_agreement >= min_agreement:
        of = "top-1" if comparison.verdicts is None else "label"
        raise EngineError(
            f"{of} agreement is {comparison.top1_agreement:.4f}; expected at least {min_agreement:g} "
            "(--min-agreement); export the model again, or lower the bound"
        )
