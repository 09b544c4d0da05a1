"""`trt-cls train`: trains a network from a spec file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls import spec as spec_files
from trt_cls.cli.options import PATH, common_options, gpus_option, results_option, spec_options
from trt_cls.cli.processes import run_on_each_gpu
from trt_cls.distributed.processes import is_first
from trt_cls.errors import RequestError, TrtClsError, require
from trt_cls.spec.architectures import HUB
from trt_cls.terminal import echo
from trt_cls.text import counted

if TYPE_CHECKING:
    from trt_cls.training.loop import TrainingResult
    from trt_cls.training.rate_finder import RateCurve

TRAINING_ALONE = ("resume", "auto_resume", "save_every", "loggers", "init_epoch")
"""Options that a search for a learning rate does not have."""


@click.command("train")
@spec_options(required=True)
@results_option(required=True)
@click.option("-c", "--classmap", type=PATH, help="JSON of class names and indices.  [default: alphabetical]")
@click.option("--resume", is_flag=True, help="Continue exactly where the training in the results folder stopped.")
@click.option(
    "--auto-resume",
    is_flag=True,
    help="--resume where the results folder holds a training, else begin one: for jobs that are started again.",
)
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Save the state for --resume every STEPS steps, and after each epoch.  [default: every 5 minutes]",
)
@gpus_option("train on; one process on each, with batch_size_per_gpu images per step.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "tf32", "bf16", "fp16"]),
    default="auto",
    help="Precision of forward and backward passes; weights are float32. auto: bf16 if the GPU has it, else fp16; fp32 "
    "on a CPU.",
)
@click.option("--compile", "compile_network", is_flag=True, help="Use torch.compile: slow to start, then faster.")
@click.option(
    "--cuda-graphs",
    is_flag=True,
    help="Record forward and backward pass once as CUDA graphs, for GPUs that wait for their host: the same results.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
@click.option(
    "--logger",
    "loggers",
    type=click.Choice(["wandb", "mlflow"]),
    multiple=True,
    help="Also log curves, configuration and final files to this tracker. Repeatable.",
)
@click.option(
    "--order",
    type=click.Choice(["shards", "folder"]),
    help="Order of images in shards. shards: a few shards at a time, each read once an epoch. folder: as if they were "
    "files, with the same weights as from their folder.  [default: shards]",
)
@click.option(
    "--init-epoch",
    "--init_epoch",
    type=int,
    default=1,
    help="Number of the first epoch; pretrained_model_path is the model of the epoch before.",
)
@click.option(
    "--from-hub",
    is_flag=True,
    help='Begin with the pretrained weights of torchvision or timm: pretrained_model_path is "hub". Downloaded once.',
)
@click.option(
    "--find-lr",
    is_flag=True,
    help="Search a learning rate instead of training: some ten trainings of 25 steps, at rates from 1e-5 on. Prints a "
    "suggestion, writes the curve to training.html, leaves no checkpoint.",
)
@common_options
@click.pass_context
def command(
    context: click.Context,
    /,
    spec: Path,
    overrides: tuple[str, ...],
    results: Path,
    gpus: int,
    device: str,
    from_hub: bool,
    find_lr: bool,
    **options: Any,
) -> None:
    """Train a network from a spec file.

    Writes checkpoints, curves and logs to the results folder. Ctrl-C saves the state; --resume continues from there.
    """
    if from_hub:
        overrides = (*overrides, f"train_config.pretrained_model_path={HUB}")
    experiment = spec_files.load(spec, overrides=overrides, needs=("train_config",))
    require("torch", "training", "train")
    from trt_cls.training.run import find_rate, train
    from trt_cls.training.run_folder import RunFolder

    if gpus > 1:
        run_on_each_gpu(context, gpus, "--device", device)
    if find_lr:
        resume, auto, save_every, loggers, first = (options.pop(name) for name in TRAINING_ALONE)
        given = {"--resume": resume, "--auto-resume": auto, "--save-every": save_every, "--logger": loggers}
        _refuse_for_search(given | {"--init-epoch": first != 1})
        curve = find_rate(experiment, results, device=device, **options)
        if is_first():
            echo(_suggestion(curve, spec, overrides, results))
        return
    if options.pop("auto_resume"):
        options["resume"] |= RunFolder(results).state.exists()
    result = train(experiment, results, device=device, **options)
    if is_first():
        echo("\n".join(_summary(result)))


def _refuse_for_search(given: Mapping[str, Any]) -> None:
    """Refuses flags that only a training has."""
    if unused := [flag for flag, value in given.items() if value]:
        raise RequestError(
            f"--find-lr with {' and '.join(unused)}; expected one of the two; search first, then train without it"
        )


def _suggestion(curve: RateCurve, spec: Path, overrides: Sequence[str], results: Path) -> str:
    """What the search found, and the command that trains with it."""
    from trt_cls.training.run_folder import RunFolder

    page = RunFolder(results).page
    if curve.suggested is None:
        raise TrtClsError(
            f"--find-lr: the loss falls at no learning rate in {curve.steps} steps; expected images and labels that a "
            f"network can learn from, and batch normalization where it has that; look at {page} and at the spec"
        )
    overridden = [part for text in (*overrides, f"{curve.field}={curve.suggested:g}") for part in ("--set", text)]
    command = ["trt-cls", "train", "-e", str(spec), "-r", str(results), *overridden]
    lowest = min(curve.losses)
    at = curve.rates[curve.losses.index(lowest)]
    return (
        f"learning rate: {curve.suggested:g} (after {curve.steps} steps the loss is lowest, {lowest:.4g}, at {at:g})\n"
        f"curve:         {page}\n"
        f"next:          {shlex.join(command)}"
    )


def _summary(result: TrainingResult) -> list[str]:
    best, files = result.best, result.results
    lines = [f"broken image: {image.path}: {image.reason}" for image in result.skipped]
    done = f"done: {counted(len(result.rows), 'epoch')}, {counted(len(result.skipped), 'broken image')}"
    if result.steps_left_out:
        done += f", {counted(result.steps_left_out, 'step')} skipped because they had no images"
    if result.stopped_early:
        done += ", stopped early"
    averaged = []
    if result.averaged:
        averaged = [f"averaged:   {result.averaged.path} ({result.averaged})"]
    export = ["trt-cls", "export", "-m", result.offered, "-e", files.spec, "-o", files.root / "model.onnx"]
    return [
        *lines,
        done,
        *([f"warning:    {best.one_answer}"] if best.one_answer else []),
        f"best model: {files.best} (epoch {best.epoch}: {best})",
        f"last model: {result.last}",
        *averaged,
        f"curves:     {files.page}, {files.curve}, tensorboard --logdir {files.events}",
        f"next:       {shlex.join(map(str, export))}",
    ]
