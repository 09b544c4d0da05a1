"""Flags that several commands share: spec, model and results, how a model is run, INT8."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trt_cls.distributed.processes import is_first
from trt_cls.engines.backends import BACKENDS, PROVIDERS
from trt_cls.errors import RequestError
from trt_cls.terminal import echo
from trt_cls.urls import location

if TYPE_CHECKING:
    from trt_cls.contract import Contract
    from trt_cls.engines.backends import Provider
    from trt_cls.evaluation.inference import Executor

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Location(click.Path):
    """A path, or the URL of an object in a store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("an empty path found, expected a file or folder; . is the current folder", param, ctx)
        if text.lower().startswith("file://") and not location(text).is_absolute():
            self.fail(f"{text} found, expected a file of this machine, as in file:///DIR", param, ctx)
        return super().convert(value, param, ctx)

    def coerce_path_result(self, value: str | os.PathLike[str]) -> Any:
        return location(os.fspath(value))


PATH = _Location()
COUNT = click.IntRange(min=1)


class Finite(click.FloatRange):
    """A finite float in a range; click's own range accepts NaN, which fails no comparison."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: D102
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} found, expected a finite number", param, ctx)
        return found


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field of the spec, as in train_config.n_epochs=3. Repeatable.",
)
"""The repeatable `--set FIELD=VALUE` as `overrides`."""


def spec_options(*, required: bool) -> Decorator:
    """`-e SPEC` as `spec` (a Path or None), and `set_option`, which is refused without it."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def checked(*arguments: Any, **given: Any) -> Any:
            if given["overrides"] and given["spec"] is None:
                raise click.UsageError("--set changes a field of a spec, and there is none; name one with -e")
            return function(*arguments, **given)

        set_option(checked)
        return click.option(
            "-e",
            "--experiment-spec",
            "--experiment_spec_file",
            "--experiment_spec",
            "spec",
            type=PATH,
            required=required,
            help="Spec file.",
        )(checked)

    return decorate


def model_option(*, required: bool, description: str = "Model file.") -> Decorator:
    """`-m MODEL` as `model` (a Path or None)."""
    return click.option("-m", "--model", "--model_path", "model", type=PATH, required=required, help=description)


def results_option(*, required: bool) -> Decorator:
    """`-r DIR` as `results` (a Path or None)."""
    return click.option(
        "-r", "--results-dir", "--results_dir", "results", type=PATH, required=required, help="Folder for results."
    )


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-v` and TAO's `-k KEY`; neither is passed to the function."""
    function = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Show tracebacks."
    )(function)
    return click.option(
        "-k", "--key", expose_value=False, callback=_ignore_key, help="Ignored: models are not encrypted."
    )(function)


def _set_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj.verbose = True


def _ignore_key(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and is_first():
        echo("-k/--key is ignored: models are not encrypted", err=True)


@dataclass(frozen=True)
class RunOptions:
    """How `evaluate` and `infer` run a model."""

    provider: Provider
    executor: Executor
    batch_size: int | None
    top_k: int | None
    classmap: Path | None
    gpus: int


def run_options(gpus: str) -> Decorator:
    """The flags of `RunOptions` as `run`; `gpus` completes the help "GPUs of this machine to …"."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def gathered(*arguments: Any, **given: Any) -> Any:
            run = RunOptions(**{field.name: given.pop(field.name) for field in fields(RunOptions)})
            return function(*arguments, run=run, **given)

        options = (batch_option, top_k_option, provider_option, executor_option, classmap_option, gpus_option(gpus))
        for option in reversed(options):
            option(gathered)
        return gathered

    return decorate


def gpus_option(description: str) -> Decorator:
    """`--gpus N` as `gpus`."""
    return click.option("--gpus", type=COUNT, default=1, help=f"GPUs of this machine to {description}")


def provider_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--provider` as `provider`."""
    purposes = "; ".join(f"{', '.join(row.devices)}: {row.purpose}" for row in BACKENDS if row.purpose)
    return click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="auto",
        help="What runs the model. auto: the GPU if there is one; infer and benchmark run INT8 on a CPU by OpenVINO "
        f"where it answers as ONNX Runtime does. {purposes}.",
    )(function)


class Executors(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The values of `--executor`; takes "pillow" too, an older name of "cpu"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: D102
        chosen: str = super().convert("cpu" if value == "pillow" else value, param, ctx)
        return chosen


def executor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--executor` as `executor`."""
    return click.option(
        "--executor",
        type=Executors(["auto", "cpu", "cuda"]),
        default="auto",
        help="What resizes and normalizes the images, with the same result: the CPU, or the GPU for a TensorRT engine. "
        "auto: the GPU if possible.",
    )(function)


batch_option = click.option("-b", "--batch-size", "--batch_size", type=COUNT, help="Batch size.")
"""`-b N` as `batch_size`, or None."""
top_k_option = click.option(
    "--top-k",
    "--top_k",
    type=COUNT,
    help="Number of labels that count (evaluate) or are listed (infer).  [default: 5; evaluate: the spec's]",
)
"""`--top-k K` as `top_k`, or None."""


def refuse_top_k(contract: Contract, top_k: int | None) -> None:
    """Refuses `--top-k` for a multi-label model, which gives every label over its threshold."""
    if top_k is not None and contract.task == "multi":
        raise RequestError(
            f"--top-k {top_k}: the model gives any number of labels, by their thresholds; expected it left out"
        )


def refuse_others(context: click.Context, name: str, *useless: str) -> None:
    """Refuses options that `name` has no use for; without `useless` all others."""
    options = {option.name: option.opts[0] for option in context.command.params} | {"more": "-i"}
    for other in useless or options.keys() - {name, "verbose", "key"}:
        if context.get_parameter_source(other) is ParameterSource.COMMANDLINE and context.params[other] != ():
            raise RequestError(f"{options[name]} with {options[other]}: expected one of them; leave the other out")


classmap_option = click.option(
    "-cm", "--classmap", type=PATH, help="Class map to check against the model's own classes."
)
"""TAO's `-cm FILE` as `classmap`."""


KEEP = ("first", "last")
"""Layers that `--int8-keep` can name."""
LOW_PRECISIONS = ("int8", "fp8")
"""Formats of 8 bits, the cheaper first: INT8 runs on every GPU."""
PREFIX = "int8_"
"""Of parameters: a field of `Int8` follows."""


def int8_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--int8` and `--fp8` as `int8` and `fp8`, and the other flags of 8 bits as `quantization`, an `Int8`."""

    @wraps(function)
    def gathered(**given: Any) -> Any:
        from trt_cls.export.int8 import Int8

        asked = {name: given.pop(name) for name in list(given) if name.startswith(PREFIX)}
        named = {name.removeprefix(PREFIX): value for name, value in asked.items() if value is not None}
        return function(quantization=Int8(**_with_formats(named, given)), **given)

    for option in reversed(_OPTIONS):
        option(gathered)
    return gathered


def _with_formats(named: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Int8` with the formats of layers; `--auto` alone asks for the formats that it names."""
    formats = named.pop("formats", None)
    if formats and "max_loss" not in named:
        raise click.UsageError("--formats names what --auto chooses from; add --auto LOSS, or leave it out")
    asked = [form for form in LOW_PRECISIONS if given[form]]
    if formats and any(form not in formats for form in asked):
        raise click.UsageError(f"--{asked[0]} and --formats {','.join(formats)} contradict each other; leave one out")
    if formats or asked:
        named["formats"] = tuple(form for form in LOW_PRECISIONS if form in (formats or asked))
    return named


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    for name in names:
        if name not in KEEP:
            raise click.BadParameter(f'"{name}" is unknown; expected {" or ".join(KEEP)}, or both with a comma')
    return names


def _formats(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    for name in names:
        if name not in (*LOW_PRECISIONS, "fp16"):
            raise click.BadParameter(f'"{name}" is unknown; expected some of int8, fp8 and fp16, with commas')
    if names and not set(names) & set(LOW_PRECISIONS):
        raise click.BadParameter("fp16 alone leaves nothing to choose; expected int8, fp8 or both with it")
    return names or None


_OPTIONS = (
    click.option(
        "--int8",
        is_flag=True,
        help="Compute in INT8 (explicit Q/DQ, symmetric, per-channel weights), the rest as with --fp16. "
        "Refused where 8 bits would compute less than half of the multiply-adds.",
    ),
    click.option(
        "--fp8",
        is_flag=True,
        help="Compute in FP8 (E4M3), else as --int8; engines of it run on compute capability 8.9 and newer.",
    ),
    click.option(
        "--calibration-images",
        "--cal_image_dir",
        "int8_images",
        type=PATH,
        metavar="DIR",
        help="Calibration images for INT8.  [default: the spec's training dataset]",
    ),
    click.option(
        "--calibration-batches",
        "--batches",
        "int8_batches",
        type=COUNT,
        help="Number of calibration batches of 16 images, spread over the folder.  [default: 32]",
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
        help="Keep the first convolution, the classifier or both in float16.",
    ),
    click.option(
        "--auto",
        "--int8-auto",
        "int8_max_loss",
        type=Finite(min=0),
        metavar="LOSS",
        help="Give each layer the cheapest of --formats, so that top-1 on --images (one sub-folder per class; with "
        "labels.csv mAP) is within LOSS points of float32.",
    ),
    click.option(
        "--formats",
        "int8_formats",
        callback=_formats,
        metavar="int8,fp8,fp16",
        help="Formats of layers for --auto; float16 is always one.  [default: --int8's or --fp8's, else int8,fp16]",
    ),
)
