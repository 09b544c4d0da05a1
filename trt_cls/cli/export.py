"""`trt-cls export`: writes an ONNX file and an engine, and files for DeepStream and Triton."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import COUNT, PATH, Finite, common_options, int8_options, model_option, spec_options
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.artefacts.sidecar import Profile
    from trt_cls.contract import Precision
    from trt_cls.export.export import ExportResult
    from trt_cls.export.int8 import Int8
    from trt_cls.export.tensorrt import BuilderRequest

SHARE = Finite(0, 1, min_open=True, max_open=True)


@click.command(name="export")
@model_option(required=True, description="Checkpoint (.safetensors), or ONNX file written by this command.")
@click.option("-o", "--output", "--output_file", "output", type=PATH, required=True, help="ONNX file to write.")
@spec_options(required=False)
@click.option("--fp16", is_flag=True, help="Compute in float16; input, output and softmax stay float32.")
@int8_options
@click.option(
    "--embed-preprocessing",
    "embed",
    is_flag=True,
    help="Normalize inside the graph: the files take uint8 RGB pixels [N,H,W,C] of the network's size.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Fit one temperature on labeled images of --images, else of the spec's validation dataset, and fold it into "
    "the files: their probabilities are calibrated, their labels the same.",
)
@click.option(
    "--coverage",
    type=SHARE,
    metavar="SHARE",
    help="Name a set of classes that holds the true one in this share of images, such as 0.95; measured on half of the "
    "labeled images that --calibrate takes, and stored in the files for infer, evaluate and Triton's client.",
)
@click.option(
    "--reject-rate",
    type=SHARE,
    metavar="SHARE",
    help='Call an image "unknown" whose likeliest class has a low probability: this share of the same images.',
)
@click.option(
    "--data_type",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="TAO's name for the same.  [default: the model's own]",
)
@click.option(
    "--images", type=PATH, help="Images to check the files on.  [default: the spec's evaluation or validation dataset]"
)
@click.option(
    "--engine",
    "--engine_file",
    "engine",
    type=PATH,
    help="Engine to write; an error if none can be built.  [default: beside the ONNX file]",
)
@click.option(
    "--builder",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "none"]),
    default="auto",
    show_default=True,
    help="auto: TensorRT with a GPU, else TensorRT-RTX, else no engine unless --engine asks for one. none: ONNX only.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="8.9",
    help="GPU generation that TensorRT-RTX builds for. Repeatable.  [default: all that can run the precision]",
)
@click.option(
    "--min-batch", "--min_batch_size", "minimum", type=COUNT, help="Smallest batch of the engine.  [default: 1]"
)
@click.option(
    "--opt-batch", "--opt_batch_size", "optimum", type=COUNT, help="Batch that it is tuned for.  [default: 8]"
)
@click.option(
    "--max-batch", "--max_batch_size", "maximum", type=COUNT, help="Largest batch of the engine.  [default: 32]"
)
@click.option("--deepstream", type=PATH, metavar="DIR", help="Folder to fill for DeepStream (Gst-nvinfer).")
@click.option("--triton", type=PATH, metavar="DIR", help="Triton model repository to add the model to.")
@common_options
def command(
    model: Path,
    output: Path,
    spec: Path | None,
    overrides: tuple[str, ...],
    fp16: bool,
    int8: bool,
    fp8: bool,
    quantization: Int8,
    embed: bool,
    calibrate: bool,
    coverage: float | None,
    reject_rate: float | None,
    data_type: Precision | None,
    images: Path | None,
    engine: Path | None,
    builder: BuilderRequest,
    capabilities: tuple[str, ...],
    minimum: int | None,
    optimum: int | None,
    maximum: int | None,
    deepstream: Path | None,
    triton: Path | None,
) -> None:
    """Write an ONNX file and a TensorRT engine from a checkpoint.

    Each file is compared with the model on real images before it gets its name.
    """
    precision = _precision(fp16, int8, fp8, data_type, quantization)
    _require_consistent(precision, quantization, embed=embed, deepstream=deepstream)
    from trt_cls.export.confidence import Rules
    from trt_cls.export.export import export
    from trt_cls.export.tensorrt import profile_from_batches
    from trt_cls.serving.common import plan_for_servers
    from trt_cls.spec import load

    profile = profile_from_batches(minimum, optimum, maximum)
    servers = _servers(deepstream, triton, model, precision, profile)
    result = export(
        model,
        output,
        precision=precision,
        int8=quantization,
        embed=embed,
        calibrate=calibrate,
        rules=Rules(coverage, reject_rate),
        experiment=load(spec, overrides=overrides) if spec else None,
        images=images,
        engine=engine,
        builder=builder,
        profile=profile,
        capabilities=capabilities,
        say=echo,
    )
    plan = plan_for_servers(result.engine, result.no_engine, profile)
    for write, folder in servers:
        write(result.onnx, plan, folder, echo)
    named = [] if spec is None else ["-e", str(spec), *(word for text in overrides for word in ("--set", text))]
    _print_next(result, builder, named)


def _precision(fp16: bool, int8: bool, fp8: bool, data_type: Precision | None, quantization: Int8) -> Precision | None:
    """The one precision that is asked for, where `--auto` may choose the most that it may be; None: the model's own."""
    flags: dict[Precision, bool] = {"fp16": fp16, "int8": int8, "fp8": fp8}
    named: dict[str, Precision] = {f"--{name}": name for name, given in flags.items() if given}
    if data_type:
        named[f"--data_type {data_type}"] = data_type
    automatic = quantization.max_loss is not None
    if len(set(named.values()) - ({"int8", "fp8"} if automatic and len(quantization.formats) > 1 else set())) > 1:
        raise click.UsageError(f"{' and '.join(named)} contradict each other; leave one of them out")
    if automatic and not set(named.values()) - {"int8", "fp8"}:
        return "fp8" if "fp8" in quantization.formats else "int8"
    return next(iter(named.values()), None)


def _require_consistent(
    precision: Precision | None,
    quantization: Int8,
    *,
    embed: bool,
    deepstream: Path | None,
) -> None:
    from trt_cls.export.int8 import Int8

    if embed and deepstream:
        raise click.UsageError(
            "--embed-preprocessing writes a file for 8-bit pixels, and DeepStream gives float32; leave it out: "
            "--deepstream puts into its own copy what nvinfer can't do"
        )
    if quantization != Int8() and precision not in ("int8", "fp8"):
        raise click.UsageError(
            "the flags of calibration and --int8-… belong to --int8, --fp8 or --auto; add one, or leave them out"
        )


def _servers(
    deepstream: Path | None, triton: Path | None, model: Path, precision: Precision | None, profile: Profile
) -> list[tuple[Callable[..., None], Path]]:
    """Of each server that is asked for, the writer and the folder; refuses what it can't serve, before the export."""
    from dataclasses import replace

    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.serving import deepstream as for_deepstream
    from trt_cls.serving import triton as for_triton

    known = (
        (for_deepstream.check_request, for_deepstream.write_deepstream, deepstream),
        (for_triton.check_request, for_triton.write_triton, triton),
    )
    asked = [(check, write, folder) for check, write, folder in known if folder]
    if asked:
        contract = read_contract(model)
        for check, *_ in asked:
            check(replace(contract, precision=precision or contract.precision), profile)
    return [(write, folder) for _, write, folder in asked]


def _print_next(result: ExportResult, builder: BuilderRequest, spec: Sequence[str]) -> None:
    """Prints what to do with the files; `spec` are the arguments that name the spec, if there is one."""
    from trt_cls.export.tensorrt import HOW_TO_GET_ONE

    evaluate = shlex.join(["trt-cls", "evaluate", "-m", str(result.onnx), *spec])
    echo(f"next: {evaluate}{'' if spec else ' --dataset FOLDER'}")
    if not result.parity:
        echo(f"parity not checked, {result.no_parity}")
    if not result.engine and builder != "none":
        echo(f"no engine: {result.no_engine}; {HOW_TO_GET_ONE}, then")
        echo(f"  trt-cls export -m {result.onnx} -o {result.onnx} --engine {result.onnx.with_suffix('.engine')}")
