"""`trt-cls evaluate`: top-k, confusion matrix and report by class of a model on a labelled folder."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import (
    batch_option,
    classmap_option,
    common_options,
    executor_option,
    model_option,
    provider_option,
    results_option,
    spec_options,
    top_k_option,
)
from trt_cls.cli.processes import gpus_option, run_on_each_gpu, take_gpu_for, watched
from trt_cls.errors import DataError, RequestError
from trt_cls.files import results_folder
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.data.folder import ImageFolder
    from trt_cls.distributed.processes import Processes
    from trt_cls.engines.backends import Provider
    from trt_cls.evaluation.answers import Executor
    from trt_cls.evaluation.evaluate import Evaluation
    from trt_cls.spec.experiment import EvalConfig

MOST_NAMES = 5
"""Of classes, in a line."""


@click.command("evaluate")
@spec_options(required=True)
@model_option(required=False, description="Model file (.engine, .onnx, .safetensors); default: eval_config.model_path.")
@results_option(required=False)
@click.option(
    "--dataset", type=click.Path(path_type=Path), help="Labelled folder in place of eval_config.eval_dataset_path."
)
@batch_option
@top_k_option
@provider_option
@executor_option
@click.option("--strict", is_flag=True, help="An image that can't be decoded is an error.")
@classmap_option
@gpus_option("evaluate on, a process on each, which share the images.")
@common_options
@click.pass_context
def command(
    context: click.Context,
    spec: Path,
    overrides: tuple[str, ...],
    model: Path | None,
    results: Path | None,
    dataset: Path | None,
    batch_size: int | None,
    top_k: int | None,
    provider: Provider,
    executor: Executor,
    strict: bool,
    classmap: Path | None,
    gpus: int,
) -> Evaluation:
    """Measure a model on a labelled folder: top-k, confusion matrix, per-class report."""
    from trt_cls.data.folder import image_folder
    from trt_cls.distributed.processes import joined

    if gpus > 1:
        run_on_each_gpu(context, gpus, "--provider", provider)
    with joined(cure="start it again") as processes:
        config, model, contract = _request(spec, overrides, model, dataset, classmap)
        take_gpu_for(processes, model, provider)
        root = dataset or Path(config.eval_dataset_path)
        folder = processes.from_first(lambda: image_folder(root, contract.classes, allow_missing=True))
        if results and processes.first:
            results_folder(results)
        k = _top_k(top_k or config.top_k, contract, processes)
        config = replace(config, batch_size=batch_size or config.batch_size, top_k=k)
        evaluation = _evaluated(model, folder, config, provider, executor, processes)
        if processes.first:
            _report_missing(folder)
            _report(evaluation, model, results, strict)
    return evaluation


def _evaluated(
    model: Path, folder: ImageFolder, config: EvalConfig, provider: Provider, executor: Executor, processes: Processes
) -> Evaluation:
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.evaluate import evaluate

    with (
        closing(open_engine(model, provider, processes.threads)) as engine,
        watched(processes, folder.samples, config.batch_size) as done,
    ):
        return evaluate(
            engine,
            folder,
            batch_size=config.batch_size,
            workers=config.n_workers,
            top_k=config.top_k,
            executor=executor,
            progress=done,
            processes=processes,
        )


def _request(
    spec: Path, overrides: tuple[str, ...], model: Path | None, dataset: Path | None, classmap: Path | None
) -> tuple[EvalConfig, Path, Contract]:
    """The evaluation that is asked for, the model and its contract, once all of them fit together."""
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.evaluation.answers import require_classmap_fits
    from trt_cls.preprocessing.description import require_spec_fits
    from trt_cls.spec import load

    experiment = load(spec, overrides=overrides, needs=("eval_config",), paths=dataset is None)
    config = experiment.eval_config
    if config is None:
        raise RequestError(f"{spec}: has no eval_config; expected one; add the section")
    if model is None and not config.model_path:
        raise RequestError(
            f"{spec}: eval_config.model_path is not set; expected a model file; set it, or name one with -m"
        )
    model = model or Path(config.model_path)
    contract = read_contract(model)
    require_spec_fits(experiment, spec, contract, model)
    if classmap:
        require_classmap_fits(classmap, contract, model)
    return config, model, contract


def _top_k(wanted: int, contract: Contract, processes: Processes) -> int:
    classes = len(contract.classes)
    if wanted > classes and processes.first:
        echo(f"top_k is {wanted}, the model has {classes} classes: top-{classes} is reported", err=True)
    return min(wanted, classes)


def _report_missing(folder: ImageFolder) -> None:
    there = {sample.label for sample in folder.samples}
    missing = [name for label, name in enumerate(folder.classes) if label not in there]
    if missing:
        names = ", ".join(missing[:MOST_NAMES]) + (" …" if len(missing) > MOST_NAMES else "")
        click.echo(
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
