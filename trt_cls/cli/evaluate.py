"""`trt-cls evaluate`: top-k accuracy, confusion matrix and per-class report of a model on a labeled folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import (
    PATH,
    RunOptions,
    common_options,
    model_option,
    refuse_others,
    refuse_top_k,
    results_option,
    run_options,
    spec_options,
)
from trt_cls.cli.processes import run_on_each_gpu, take_gpu_for, with_progress
from trt_cls.errors import DataError, RequestError
from trt_cls.files import EXAMPLE, is_shards, results_folder
from trt_cls.stores import output_folder
from trt_cls.terminal import echo
from trt_cls.text import counted

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.data.folder import ImageFolder
    from trt_cls.data.samples import Samples
    from trt_cls.data.split import Dataset
    from trt_cls.distributed.processes import Processes
    from trt_cls.evaluation.evaluate import Evaluation, LabelEvaluation
    from trt_cls.evaluation.shard_answers import ShardAnswers
    from trt_cls.spec.experiment import EvalConfig

    Request = Callable[[], tuple[EvalConfig, Dataset, Path, Contract]]

MOST_NAMES = 5
"""Classes that a line names."""


@click.command("evaluate")
@spec_options(required=False)
@model_option(required=False, description="Model file (.engine, .onnx, .safetensors); default: eval_config.model_path.")
@results_option(required=False)
@click.option("--dataset", type=PATH, help="Labeled folder or shards, instead of the spec's evaluation images.")
@click.option(
    "--unknown",
    type=PATH,
    metavar="DIR",
    help="Images of no known class, in any sub-folders, to measure how well the confidence separates them (AUROC).",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="Of shards: folder for the model's answers, a file for each. Shards that have theirs are left out.",
)
@click.option(
    "--shard",
    metavar="K/N",
    help="With -o: answer to share K of N, K from 0.  [default: by torchrun or the SLURM array, else all]",
)
@click.option(
    "--merge", type=PATH, metavar="OUT", help="Evaluate the answers written with -o OUT; the other options as there."
)
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
    unknown: Path | None,
    output: Path | None,
    shard: str | None,
    merge: Path | None,
    tta: str | None,
    strict: bool,
    run: RunOptions,
) -> Evaluation | LabelEvaluation | None:
    """Evaluate a model on a labeled folder: top-k, confusion matrix, per-class report.

    A multi-label model is measured by average precision and F1, on a folder with labels.csv.

    Name a spec with -e, or -m MODEL and --dataset DIR alone: the model knows its preprocessing and classes.
    """
    if output:
        refuse_others(context, "output", "merge", "results", "unknown", "strict", "top_k")
    if merge:
        refuse_others(context, "merge", "shard", "unknown", "executor", "gpus")
    if shard and not output:
        raise RequestError(f"--shard {shard} without -o; expected a folder for the answers; name it with -o OUT")
    if run.gpus > 1:
        run_on_each_gpu(context, run.gpus, "--provider", run.provider)
    request = partial(_request, spec, overrides, model, dataset, run.classmap)
    if output:
        _answer(request, output, shard, tta, run)
        return None
    if merge:
        return _evaluate_answers(request, merge, tta, run, results, strict)
    return _evaluate(request, unknown, tta, run, results, strict)


def _answer(request: Request, out: Path, shard: str | None, tta: str | None, run: RunOptions) -> None:
    """Writes the answers to this process's share of the shards."""
    from trt_cls.cli.shard_jobs import answer_shards
    from trt_cls.stores import require_there

    config, _, model, _ = asked = request()
    _, shards, answers = _shards(asked, output_folder(out), tta, run)
    require_there([*shards])
    samples_of = shards.__getitem__
    answer_shards(answers, [*shards], lambda: samples_of, model, run, shard, config.n_workers, flips=bool(tta))


def _evaluate_answers(
    request: Request, out: Path, tta: str | None, run: RunOptions, results: Path | None, strict: bool
) -> Evaluation:
    """Evaluates the answers to all shards."""
    from trt_cls.distributed.processes import ALONE
    from trt_cls.evaluation.evaluate import measured, refuse_lost_class

    config, _, model, contract = asked = request()
    folder, shards, answers = _shards(asked, out, tta, run)
    if results:
        results_folder(results)
    predictions, backend = answers.merged(shards, len(contract.classes))
    refuse_lost_class(folder, predictions)
    evaluation = measured(contract, backend, predictions, _top_k(run.top_k or config.top_k, contract, ALONE))
    _report_missing(folder)
    _report(evaluation, model, results, strict)
    return evaluation


def _shards(
    asked: tuple[EvalConfig, Dataset, Path, Contract], out: Path, tta: str | None, run: RunOptions
) -> tuple[ImageFolder, dict[Path, Samples], ShardAnswers]:
    """The images, those of each shard, and the answers in the folder `out`."""
    from trt_cls.artefacts.sidecar import file_sha256
    from trt_cls.data.shards import by_shard
    from trt_cls.evaluation.shard_answers import ShardAnswers

    config, images, model, contract = asked
    if not is_shards(images.root):
        raise RequestError(
            f"{images.root}: found with -o or --merge, expected tar shards, as in {EXAMPLE}; evaluate it without them"
        )
    folder, size = images.labeled(contract.classes, allow_missing=True), run.batch_size or config.batch_size
    answers = ShardAnswers(out, file_sha256(model), "safetensors", run.provider, size, tta=tta or "")
    return folder, by_shard(folder.samples), answers


def _evaluate(
    request: Request, unknown: Path | None, tta: str | None, run: RunOptions, results: Path | None, strict: bool
) -> Evaluation | LabelEvaluation:
    """Evaluates in this process, or in several that share the images."""
    from trt_cls.distributed.processes import joined
    from trt_cls.engines import open_engine
    from trt_cls.evaluation.evaluate import evaluate, evaluate_labels, foreign_samples
    from trt_cls.evaluation.inference import WithFlips

    with joined(advice="start it again") as processes:
        config, images, model, contract = request()
        refuse_top_k(contract, run.top_k)
        if unknown and contract.task == "multi":
            raise RequestError(
                f"--unknown {unknown}: AUROC compares likeliest classes; expected it left out, for {model} "
                "is a multi-label model"
            )
        take_gpu_for(processes, model, run.provider)
        folder = processes.from_first(lambda: images.labeled(contract.classes, allow_missing=True))
        foreign = processes.from_first(lambda: foreign_samples(unknown)) if unknown else []
        if results and processes.first:
            results_folder(results)
        several = contract.task == "multi"
        k = 0 if several else _top_k(run.top_k or config.top_k, contract, processes)
        size = run.batch_size or config.batch_size
        exact = open_engine(model, run.provider, processes.threads)
        with with_progress(exact, range(len(folder.samples) + len(foreign)), run, size, processes) as (engine, options):
            engine = WithFlips(engine) if tta else engine
            options |= {"workers": config.n_workers}
            evaluation: Evaluation | LabelEvaluation
            if several:
                evaluation = evaluate_labels(engine, folder, **options)
            else:
                evaluation = evaluate(engine, folder, foreign, top_k=k, **options)
        if processes.first:
            _report_missing(folder)
            if images.part:
                echo(
                    f"{counted(len(folder.samples), 'image')} of {images.root}, held out by extensions.validation_split"
                )
            _report(evaluation, model, results, strict)
    return evaluation


def _request(
    spec: Path | None, overrides: tuple[str, ...], model: Path | None, dataset: Path | None, classmap: Path | None
) -> tuple[EvalConfig, Dataset, Path, Contract]:
    """The eval_config, images, model and contract, after the check that spec, class map and model agree."""
    from trt_cls.data.split import Dataset, evaluation_dataset
    from trt_cls.evaluation.inference import checked_contract
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
    contract = checked_contract(model, experiment, spec, classmap)
    return config, images.with_labels_of(contract.task), model, contract


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


def _report(evaluation: Evaluation | LabelEvaluation, model: Path, results: Path | None, strict: bool) -> None:
    from trt_cls.evaluation.evaluate import LabelEvaluation
    from trt_cls.evaluation.results import (
        evaluation_table,
        label_table,
        skipped_lines,
        write_evaluation,
        write_label_evaluation,
    )

    skipped = evaluation.skipped
    echo(skipped_lines(skipped), err=True, nl=False)
    if strict and skipped:
        able = "used" if evaluation.contract.task == "multi" else "decoded"
        raise DataError(
            f"{counted(len(skipped), 'image')} can't be {able}, the first is {skipped[0].path}: {skipped[0].reason}; "
            "expected none with --strict; replace or remove them"
        )
    written: tuple[Path, ...]
    if isinstance(evaluation, LabelEvaluation):
        echo(label_table(evaluation))
        written = write_label_evaluation(evaluation, model, results) if results else ()
    else:
        echo(evaluation_table(evaluation))
        written = write_evaluation(evaluation, model, results) if results else ()
    if written:
        echo("\nwritten: " + ", ".join(map(str, written)))
