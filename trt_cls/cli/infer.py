"""`trt-cls infer`: labels for an image, or for a folder of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.engine_options import batch_option, classmap_option, provider_option, top_k_option
from trt_cls.cli.options import common_options, model_option, results_option, spec_options

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.engines.engine import Provider
    from trt_cls.evaluation.evaluate import Predictions

BATCH_SIZE, WORKERS, TOP_K = 32, 8, 5


@click.command("infer")
@model_option(required=True, description="Model file (.engine, .onnx, .safetensors).")
@click.option(
    "-i",
    "--image",
    "-d",
    "--image-dir",
    "--image_dir",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="An image, or a folder of images.",
)
@spec_options(required=False)
@results_option(required=False)
@batch_option
@top_k_option
@provider_option
@classmap_option
@common_options
def command(
    model: Path,
    source: Path,
    spec: Path | None,
    overrides: tuple[str, ...],
    results: Path | None,
    batch_size: int | None,
    top_k: int | None,
    provider: Provider,
    classmap: Path | None,
) -> None:
    """Label an image, or a folder of them.

    The labels of a folder go to result.csv in the results' folder or else in the images'.
    """
    from trt_cls.data.folder import list_images
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.infer import infer
    from trt_cls.files import results_folder

    contract = _checked_contract(model, spec, overrides, classmap)
    images = list_images(source)
    target = results or (source if source.is_dir() else None)
    if target:
        results_folder(target)
    with closing(open_engine(model, provider)) as engine:
        predictions = infer(engine, images, batch_size=batch_size or BATCH_SIZE, workers=WORKERS)
    if not source.is_dir():
        _print_likeliest(predictions, contract, top_k or TOP_K)
    _report(predictions, contract, target)


def _checked_contract(model: Path, spec: Path | None, overrides: tuple[str, ...], classmap: Path | None) -> Contract:
    """The model's contract, once spec and class map fit it."""
    from trt_cls.engines.contracts import read_contract
    from trt_cls.evaluation.agreement import require_classmap_fits, require_spec_fits
    from trt_cls.spec import load

    contract = read_contract(model)
    if spec:
        require_spec_fits(load(spec, overrides=overrides, paths=False), spec, contract, model)
    if classmap:
        require_classmap_fits(classmap, contract, model)
    return contract


def _print_likeliest(predictions: Predictions, contract: Contract, top_k: int) -> None:
    from trt_cls.evaluation.infer import likeliest

    ranking = likeliest(predictions.probabilities[0], contract.classes, top_k)
    width = max(len(name) for name, confidence in ranking)
    for name, confidence in ranking:
        click.echo(f"{name:{width}}  {confidence:.4f}")


def _report(predictions: Predictions, contract: Contract, folder: Path | None) -> None:
    from trt_cls.evaluation.results import write_labels
    from trt_cls.evaluation.tables import skipped_lines

    click.echo(skipped_lines(predictions.skipped), err=True, nl=False)
    if folder:
        path = folder / "result.csv"
        write_labels(predictions, contract.classes, path)
        click.echo(f"{len(predictions.samples)} images labelled, {len(predictions.skipped)} skipped; written: {path}")
