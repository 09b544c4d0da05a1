"""Flags of the commands that run a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def provider_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--provider` as `provider`."""
    return click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda", "tensorrt", "openvino"]),
        default="auto",
        show_default=True,
        help="What runs the model; auto: the GPU where there is one. openvino: ONNX files on a CPU, fastest for INT8.",
    )(function)


def executor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--executor` as `executor`."""
    return click.option(
        "--executor",
        type=click.Choice(["auto", "pillow", "cuda"]),
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
