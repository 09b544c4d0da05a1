"""Flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trt_cls.cli.output import echo
from trt_cls.distributed.processes import is_first

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
