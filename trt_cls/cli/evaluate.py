"""`trt-cls evaluate`: top-k accuracy, confusion matrix and per-class report of a model on a labeled folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import (
    PATH,
    RunOptions,
    common_options,
    model_option,
    results_option,
    run_options,
    spec_options,
)
from trt_cls.cli.processes import opened, run_on_each_gpu, take_gpu_for
from trt_cls.errors import DataError, RequestError
from trt_cls.files import results_folder
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.data.folder import ImageFolder
    from trt_cls.data.split import Dataset
    from trt_cls.distributed.processes import Processes
    from trt_cls.evaluation.evaluate import Evaluation
    from trt_cls.spec.experiment import EvalConfig

MOST_NAMES = 5
"""Classes that a line names."""


@click.command("evaluate")
@spec_options(required=False)
@model_option(required=False, description="Model file (.engine, .onnx, .safetensors); default: eval_config.model_path.")
@results_option(required=False)
@click.option("--dataset", type=PATH, help="Labeled folder or shards, instead of the spec's evaluation images.")
@run_options("evaluate on; one process on each, which share the images.")
@click.option("--tta", type=click.Choice(["flip"]), help="flip: the mean over each image and its mirror image.")
@click.option("--strict", is_flag=True, help="Fail if an image can't be decoded.")
@common_options
@click.pass_context
def command(
    context: click.Context,
    spec: Path | None,
    overrides: tuple[str, ...],
    model: Path | None,
    results: Path | None,
    dataset: Path | None,
    tta: str | None,
    strict: bool,
    run: RunOptions,
) -> Evaluation:
    """Evaluate a model on a labeled folder: top-k, confusion matrix, per-class report.

    Name a spec with -e, or -m MODEL and --dataset DIR alone: the model knows its preprocessing and classes.
    """
    from trt_cls.distributed.processes import joined
    from trt_cls.evaluation.evaluate import evaluate
    from trt_cls.evaluation.flips import WithFlips

    if run.gpus > 1:
        run_on_each_gpu(context, run.gpus, "--provider", run.provider)
    with joined(advice="start it again") as processes:
        config, images, model, contract = _request(spec, overrides, model, dataset, run.classmap)
        take_gpu_for(processes, model, run.provider)
        folder = processes.from_first(lambda: images.labeled(contract.classes, allow_missing=True))
        if results and processes.first:
            results_folder(results)
        k = _top_k(run.top_k or config.top_k, contract, processes)
        size = run.batch_size or config.batch_size
        with opened(model, folder.samples, run, size, processes) as (engine, options):
            engine = WithFlips(engine) if tta else engine
            evaluation = evaluate(engine, folder, top_k=k, workers=config.n_workers, **options)
        if processes.first:
            _report_missing(folder)
            if images.part:
                echo(f"{len(folder.samples)} images of {images.root}, held out by extensions.validation_split")
            _report(evaluation, model, results, strict)
    return evaluation


def _request(
    spec: Path | None, overrides: tuple[str, ...], model: Path | None, dataset: Path | None, classmap: Path | None
) -> tuple[EvalConfig, Dataset, Path, Contract]:
    """The eval_config, images, model and contract, after the check that spec, class map and model agree."""
    from trt_cls.data.split import Dataset, evaluation_dataset
    from trt_cls.evaluation.answers import checked_contract
    from trt_cls.spec import load
    from trt_cls.spec.experiment import EvalConfig

    experiment, config = None, EvalConfig()
    if spec:
        experiment = load(spec, overrides=overrides, needs=("eval_config",), paths=dataset is None)
        config = experiment.eval_config or config
    images = Dataset(dataset) if dataset else evaluation_dataset(experiment) if experiment else None
    if images is None:
        raise RequestError(
            "no images to evaluate on; expected a spec or a labeled folder; add -e SPEC or --dataset DIR"
        )
    if model is None and not config.model_path:
        found = f"{spec}: eval_config.model_path is not set" if spec else "no model and no spec to name it"
        raise RequestError(f"{found}; expected a model file; {'set it, or ' * bool(spec)}name one with -m")
    model = model or Path(config.model_path)
    return config, images, model, checked_contract(model, experiment, spec, classmap)


def _top_k(wanted: int, contract: Contract, processes: Processes) -> int:
    classes = len(contract.classes)
    if wanted > classes and processes.first:
        echo(f"top_k is {wanted}, the model has {classes} classes: top-{classes} is reported", err=True)
    return min(wanted, classes)


def _report_missing(folder: ImageFolder) -> None:
    missing = [name for name, count in zip(folder.classes, folder.counts, strict=True) if not count]
    if missing:
        names = ", ".join(missing[:MOST_NAMES]) + (" …" if len(missing) > MOST_NAMES else "")
        echo(
            f"{folder.root}: no images of {len(missing)} of {len(folder.classes)} classes (support 0): {names}",
            err=True,
        )


def _report(evaluation: Evaluation, model: Path, results: Path | None, strict: bool) -> None:
    from trt_cls.evaluation.results import evaluation_table, skipped_lines, write_evaluation

    skipped = evaluation.predictions.skipped
    echo(skipped_lines(skipped), err=True, nl=False)
    if strict and skipped:
        raise DataError(
            f"{len(skipped)} images can't be decoded, the first is {skipped[0].path}: {skipped[0].reason}; expected "
            "none with --strict; replace or remove them"
        )
    echo(evaluation_table(evaluation))
    if results:
        echo("\nwritten: " + ", ".join(str(path) for path in write_evaluation(evaluation, model, results)))
