"""`trt-cls infer`: labels for an image, or for a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import common_options, model_option, results_option, spec_options
from trt_cls.errors import RequestError

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.engines.engine import Provider
    from trt_cls.evaluation.evaluate import Predictions

WORKERS = 8
"""Threads that decode images; a spec's eval_config says otherwise."""


@click.command("infer")
@model_option(required=True, description="Model file (.engine, .onnx, .safetensors).")
@click.option("-i", "--image", type=click.Path(path_type=Path), help="An image, or a folder of images.")
@click.option(
    "-d", "--image-dir", "--image_dir", "image_dir", type=click.Path(path_type=Path), help="The same as -i FOLDER."
)
@spec_options(required=False)
@results_option(required=False)
@click.option(
    "-b",
    "--batch-size",
    "--batch_size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images a batch.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Labels printed for a single image."
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
@click.option(
    "-cm", "--classmap", type=click.Path(path_type=Path), help="Class map that the model's classes must equal."
)
@common_options
def command(
    model: Path,
    image: Path | None,
    image_dir: Path | None,
    spec: Path | None,
    overrides: tuple[str, ...],
    results: Path | None,
    batch_size: int,
    top_k: int,
    provider: Provider,
    classmap: Path | None,
) -> None:
    """Label an image, or a folder of them."""
    from trt_cls.data.folder import list_images
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.infer import infer
    from trt_cls.files import results_folder

    source = image or image_dir
    if source is None or (image and image_dir):
        raise RequestError("expected one image or one folder; name it with -i")
    contract = _checked_contract(model, spec, overrides, classmap)
    images = list_images(source)
    folder = results_folder(results or source) if source.is_dir() or results else None
    engine = open_engine(model, provider)
    try:
        predictions = infer(engine, images, batch_size=batch_size, workers=WORKERS)
    finally:
        engine.close()
    if not source.is_dir():
        _print_likeliest(predictions, contract, top_k)
    _report(predictions, contract, folder)


def _checked_contract(model: Path, spec: Path | None, overrides: tuple[str, ...], classmap: Path | None) -> Contract:
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

    for name, confidence in likeliest(predictions.probabilities[0], contract.classes, top_k):
        click.echo(f"{name}  {confidence:.4f}")


def _report(predictions: Predictions, contract: Contract, folder: Path | None) -> None:
    from trt_cls.evaluation.results import write_labels
    from trt_cls.evaluation.tables import skipped_lines

    click.echo(skipped_lines(predictions.skipped), err=True, nl=False)
    if folder:
        path = folder / "result.csv"
        write_labels(predictions, contract.classes, path)
        click.echo(f"{len(predictions.samples)} images labelled, {len(predictions.skipped)} skipped: {path}")
