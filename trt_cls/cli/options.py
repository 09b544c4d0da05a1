"""Flags that several commands share.

Flags of the commands that run a model.

Flags of `trt-cls export` that say how INT8 is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from trt_cls.distributed.processes import is_first
from trt_cls.engines.backends import BACKENDS, PROVIDERS
from trt_cls.terminal import echo

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field of the spec, as in train_config.n_epochs=3. Repeatable.",
)
"""The repeatable `--set FIELD=VALUE` as `overrides`."""


def spec_options(*, required: bool) -> Decorator:
    """`-e SPEC` as `spec` (a Path or None), and `set_option`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = set_option(function)
        return click.option(
            "-e",
            "--experiment-spec",
            "--experiment_spec_file",
            "--experiment_spec",
            "spec",
            type=click.Path(path_type=Path),
            required=required,
            help="Spec file.",
        )(function)

    return decorate


def model_option(*, required: bool, description: str = "Model file.") -> Decorator:
    """`-m MODEL` as `model` (a Path or None)."""
    return click.option(
        "-m", "--model", "--model_path", "model", type=click.Path(path_type=Path), required=required, help=description
    )


def results_option(*, required: bool) -> Decorator:
    """`-r DIR` as `results` (a Path or None)."""
    return click.option(
        "-r",
        "--results-dir",
        "--results_dir",
        "results",
        type=click.Path(path_type=Path),
        required=required,
        help="Folder for results.",
    )


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-v` and TAO's `-k KEY`; neither reaches the function."""
    function = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Tracebacks."
    )(function)
    return click.option(
        "-k", "--key", expose_value=False, callback=_ignore_key, help="Ignored: models are not encrypted."
    )(function)


def _set_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj.verbose = True


def _ignore_key(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and is_first():
        echo("-k/--key is ignored: models are not encrypted here", err=True)


def provider_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--provider` as `provider`."""
    purposes = "; ".join(f"{', '.join(row.devices)}: {row.purpose}" for row in BACKENDS if row.purpose)
    return click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="auto",
        show_default=True,
        help=f"What runs the model; auto: the GPU where there is one. {purposes}.",
    )(function)


class _Executors(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Takes "pillow" too, an older name of "cpu"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        chosen: str = super().convert("cpu" if value == "pillow" else value, param, ctx)
        return chosen


def executor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--executor` as `executor`."""
    return click.option(
        "--executor",
        type=_Executors(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="What resizes and normalizes the images, with the same result: the CPU, or the GPU for a TensorRT engine; "
        "auto: the GPU where that can be.",
    )(function)


def batch_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-b N` as `batch_size` (None where it is not given)."""
    return click.option("-b", "--batch-size", "--batch_size", type=click.IntRange(min=1), help="Images a batch.")(
        function
    )


def top_k_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--top-k K` as `top_k` (None where it is not given)."""
    return click.option(
        "--top-k", "--top_k", type=click.IntRange(min=1), help="How many of the likeliest labels count."
    )(function)


def classmap_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """TAO's `-cm FILE` as `classmap`."""
    return click.option(
        "-cm", "--classmap", type=click.Path(path_type=Path),
        help="Class map to hold against the model, which carries its own classes.",
    )(function)  # fmt: skip


KEEP = ("first", "last")
PREFIX = "int8_"
"""Of parameters: a field of `Int8` follows."""


def int8_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--int8` as `int8`, and the flags beside it as `quantization`, an `Int8`."""

    @wraps(function)
    def gathered(**given: Any) -> Any:
        from trt_cls.export.int8 import Int8

        asked = {name: given.pop(name) for name in list(given) if name.startswith(PREFIX)}
        named = {name.removeprefix(PREFIX): value for name, value in asked.items() if value is not None}
        return function(quantization=Int8(**named), **given)

    for option in reversed(_OPTIONS):
        option(gathered)
    return gathered


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    for name in names:
        if name not in KEEP:
            raise click.BadParameter(f'"{name}" is not known; expected {" or ".join(KEEP)}, or both with a comma')
    return names


_OPTIONS = (
    click.option(
        "--int8",
        is_flag=True,
        help="Compute in INT8 (explicit Q/DQ, symmetric, weights by channel), the rest as with --fp16.",
    ),
    click.option(
        "--calibration-images",
        "--cal_image_dir",
        "int8_images",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Images for the calibration. Left out: the spec's training dataset.",
    ),
    click.option(
        "--calibration-batches",
        "--batches",
        "int8_batches",
        type=click.IntRange(min=1),
        help="Calibration batches, 16 images each, spread over the folder.  [default: 32, 512 images]",
    ),
    click.option(
        "--calibration-method",
        "int8_method",
        type=click.Choice(["auto", "entropy", "percentile", "minmax"]),
        help="How activation ranges are clipped: entropy (minimum KL divergence), percentile (99.99 %), minmax (not at "
        "all), auto (whichever of these changes the logits least).  [default: auto]",
    ),
    click.option(
        "--int8-keep",
        callback=_names,
        metavar="first,last",
        help="Leave the first convolution, the classifier or both in float16.",
    ),
    click.option(
        "--int8-auto",
        "int8_max_loss",
        type=click.FloatRange(min=0),
        metavar="LOSS",
        help="Leave in float16 the layers that cost most, until top-1 on --images (one sub-folder per class) is within "
        "LOSS points of float32.",
    ),
)
