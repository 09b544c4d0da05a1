"""`trt-cls train`: trains a network from a spec file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls import spec as spec_files
from trt_cls.cli.options import PATH, common_options, gpus_option, results_option, spec_options
from trt_cls.cli.processes import run_on_each_gpu
from trt_cls.distributed.processes import is_first
from trt_cls.errors import require
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.training.loop import TrainingResult


@click.command("train")
@spec_options(required=True)
@results_option(required=True)
@click.option("-c", "--classmap", type=PATH, help="JSON of class names and indices.  [default: alphabetical]")
@click.option("--resume", is_flag=True, help="Continue exactly where the training in the results folder stopped.")
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
    **options: Any,
) -> None:
    """Train a network from a spec file.

    Writes checkpoints, curves and logs to the results folder. Ctrl-C saves the state; --resume continues from there.
    """
    experiment = spec_files.load(spec, overrides=overrides, needs=("train_config",))
    require("torch", "training", "train")
    from trt_cls.training.run import train

    if gpus > 1:
        run_on_each_gpu(context, gpus, "--device", device)
    result = train(experiment, results, device=device, **options)
    if is_first():
        echo("\n".join(_summary(result)))


def _summary(result: TrainingResult) -> list[str]:
    best, files = result.best, result.results
    lines = [f"broken image: {image.path}: {image.reason}" for image in result.skipped]
    done = f"done: {len(result.rows)} epochs, {len(result.skipped)} broken images"
    if result.steps_left_out:
        done += f", {result.steps_left_out} steps skipped because they had no images"
    if result.stopped_early:
        done += ", stopped early"
    averaged = []
    if result.averaged:
        averaged = [f"averaged:   {result.averaged.path} ({result.averaged})"]
    export = ["trt-cls", "export", "-m", str(result.offered), "-o", str(files.root / "model.onnx")]
    return [
        *lines,
        done,
        *([f"warning:    {best.one_answer}"] if best.one_answer else []),
        f"best model: {files.best} (epoch {best.epoch}: {best})",
        f"last model: {result.last}",
        *averaged,
        f"curves:     {files.page}, {files.curve}, tensorboard --logdir {files.events}",
        f"next:       {shlex.join(export)}",
    ]
