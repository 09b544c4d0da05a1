"""`trt-cls evaluate`: top-k, confusion matrix and report by class of a model on a labelled folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import common_options, model_option, results_option, spec_options
from trt_cls.errors import DataError, RequestError

if TYPE_CHECKING:
    from trt_cls.engines.engine import Engine, Provider
    from trt_cls.evaluation.evaluate import Evaluation
    from trt_cls.spec.experiment import EvalConfig, Experiment


@click.command("evaluate")
@spec_options(required=True)
@model_option(required=False, description="Model file (.engine, .onnx, .safetensors); default: eval_config.model_path.")
@results_option(required=False)
@click.option(
    "--dataset", type=click.Path(path_type=Path), help="Labelled folder in place of eval_config.eval_dataset_path."
)
@click.option("-b", "--batch-size", "--batch_size", type=click.IntRange(min=1), help="Images a batch.")
@click.option("--top-k", type=click.IntRange(min=1), help="The label counts among the k likeliest.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
@click.option("--strict", is_flag=True, help="An image that can't be decoded is an error.")
@click.option(
    "-cm", "--classmap", type=click.Path(path_type=Path), help="Class map that the model's classes must equal."
)
@common_options
def command(
    spec: Path,
    overrides: tuple[str, ...],
    model: Path | None,
    results: Path | None,
    dataset: Path | None,
    batch_size: int | None,
    top_k: int | None,
    provider: Provider,
    strict: bool,
    classmap: Path | None,
) -> None:
    """Measure a model on a labelled folder: top-k, confusion matrix, per-class report."""
    from trt_cls.engines import open_engine
    from trt_cls.engines.contracts import read_contract
    from trt_cls.evaluation.agreement import require_classmap_fits, require_spec_fits
    from trt_cls.files import results_folder
    from trt_cls.spec import load

    experiment = load(spec, overrides=overrides, needs=("eval_config",), paths=False)
    config = _eval_config(experiment)
    path = model or _model_of(config, spec)
    contract = read_contract(path)
    require_spec_fits(experiment, spec, contract, path)
    if classmap:
        require_classmap_fits(classmap, contract, path)
    if results:
        results_folder(results)
    engine = open_engine(path, provider)
    try:
        evaluation = _evaluate(engine, config, dataset or Path(config.eval_dataset_path), batch_size, top_k)
    finally:
        engine.close()
    if strict and evaluation.predictions.skipped:
        raise DataError(_not_decoded(evaluation))
    _report(evaluation, path, results)


def _eval_config(experiment: Experiment) -> EvalConfig:
    if experiment.eval_config is None:
        raise RequestError("the spec has no eval_config; expected one; add the section")
    return experiment.eval_config


def _model_of(config: EvalConfig, spec: Path) -> Path:
    if not config.model_path:
        raise RequestError(
            f"{spec}: eval_config.model_path is not set; expected a model file; set it, or name one with -m"
        )
    return Path(config.model_path)


def _evaluate(
    engine: Engine, config: EvalConfig, dataset: Path, batch_size: int | None, top_k: int | None
) -> Evaluation:
    from trt_cls.data.folder import image_folder
    from trt_cls.evaluation.evaluate import evaluate

    folder = image_folder(dataset, engine.contract.classes)
    wanted = top_k or config.top_k
    if wanted > len(folder.classes):
        click.echo(
            f"top_k is {wanted}, the model has {len(folder.classes)} classes: top-{len(folder.classes)} is reported",
            err=True,
        )
    return evaluate(engine, folder, batch_size=batch_size or config.batch_size, workers=config.n_workers, top_k=wanted)


def _not_decoded(evaluation: Evaluation) -> str:
    skipped = evaluation.predictions.skipped
    listed = "; ".join(f"{image.path}: {image.reason}" for image in skipped)
    return f"{len(skipped)} images can't be decoded: {listed}; expected none with --strict; replace or remove them"


def _report(evaluation: Evaluation, model: Path, results: Path | None) -> None:
    from trt_cls.evaluation.results import write_evaluation
    from trt_cls.evaluation.tables import evaluation_table, skipped_lines

    click.echo(evaluation_table(evaluation))
    click.echo(skipped_lines(evaluation.predictions.skipped), err=True, nl=False)
    if results:
        click.echo("\nwritten: " + ", ".join(str(path) for path in write_evaluation(evaluation, model, results)))
