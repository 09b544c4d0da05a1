"""`trt-cls export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import common_options, model_option, spec_options

if TYPE_CHECKING:
    from trt_cls.contract import Precision
    from trt_cls.export.builders import Request
    from trt_cls.export.export import ExportResult

BATCH = click.IntRange(min=1)
FILE = click.Path(path_type=Path)


@click.command(name="export")
@model_option(required=True, description="Checkpoint (.safetensors), or ONNX file written by this command.")
@click.option("-o", "--output", "--output_file", "output", type=FILE, required=True, help="ONNX file to write.")
@spec_options(required=False)
@click.option("--fp16", is_flag=True, help="Compute in float16; input, output and softmax stay float32.")
@click.option(
    "--data_type", type=click.Choice(["fp32", "fp16"]), help="TAO's name for the same. Left out: the model's own."
)
@click.option(
    "--images", type=FILE, help="Images to check the files on. Left out: the spec's evaluation or validation dataset."
)
@click.option(
    "--engine",
    "--engine_file",
    "engine",
    type=FILE,
    help="Engine to write; an error where none can be built. Left out: beside the ONNX file.",
)
@click.option(
    "--builder",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "none"]),
    default="auto",
    show_default=True,
    help="auto: TensorRT with a GPU, else TensorRT-RTX, else no engine unless --engine asks for one. none: ONNX only.",
)
@click.option(
    "--min-batch", "--min_batch_size", "minimum", type=BATCH, help="Smallest batch of the engine.  [default: 1]"
)
@click.option(
    "--opt-batch", "--opt_batch_size", "optimum", type=BATCH, help="Batch that it is tuned for.  [default: 8]"
)
@click.option(
    "--max-batch", "--max_batch_size", "maximum", type=BATCH, help="Largest batch of the engine.  [default: 32]"
)
@common_options
def command(
    model: Path,
    output: Path,
    spec: Path | None,
    overrides: tuple[str, ...],
    fp16: bool,
    data_type: Precision | None,
    images: Path | None,
    engine: Path | None,
    builder: Request,
    minimum: int | None,
    optimum: int | None,
    maximum: int | None,
) -> None:
    """Write an ONNX file and a TensorRT engine from a checkpoint.

    Each file is held against the model on real images before it gets its name.
    """
    if fp16 and data_type == "fp32":
        raise click.UsageError("--fp16 and --data_type fp32 contradict each other; leave one of them out")
    if overrides and spec is None:
        raise click.UsageError("--set changes a field of a spec, and there is none; name one with -e")
    from trt_cls.export.engine_file import profile_from_batches
    from trt_cls.export.export import export
    from trt_cls.spec import load

    result = export(
        model,
        output,
        precision="fp16" if fp16 else data_type,
        experiment=load(spec, overrides=overrides) if spec else None,
        images=images,
        engine=engine,
        builder=builder,
        profile=profile_from_batches(minimum, optimum, maximum),
        say=click.echo,
    )
    _print_next(result, builder)


def _print_next(result: ExportResult, builder: Request) -> None:
    from trt_cls.export.builders import HOW_TO_GET_ONE

    click.echo(f"next: trt-cls evaluate -e SPEC -m {result.onnx}")
    if not result.parity:
        click.echo('parity was not checked, for want of onnxruntime: pip install "trt-cls[cpu]", then export again')
    if not result.engine and builder != "none":
        click.echo(f"no engine: {result.no_engine}; {HOW_TO_GET_ONE}, then")
        click.echo(f"  trt-cls export -m {result.onnx} -o {result.onnx} --engine {result.onnx.with_suffix('.engine')}")
