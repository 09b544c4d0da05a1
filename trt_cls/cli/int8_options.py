"""Flags of `trt-cls export` that say how INT8 is reached."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

KEEP = ("first", "last")


def int8_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--int8` as `int8`, and the flags beside it as `quantization`, an `Int8`."""

    @wraps(function)
    def gathered(
        *,
        calibration_images: Path | None,
        calibration_batches: int | None,
        calibration_method: str | None,
        int8_keep: tuple[str, ...],
        int8_auto: float | None,
        **others: Any,
    ) -> Any:
        from trt_cls.export.int8 import Int8

        given: dict[str, Any] = {
            "images": calibration_images,
            "batches": calibration_batches,
            "method": calibration_method,
            "keep": int8_keep or None,
            "max_loss": int8_auto,
        }
        return function(
            quantization=Int8(**{name: value for name, value in given.items() if value is not None}), **others
        )

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
        "calibration_images",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Images to measure INT8's ranges on. Left out: the spec's training dataset.",
    ),
    click.option(
        "--calibration-batches",
        "--batches",
        "calibration_batches",
        type=click.IntRange(min=1),
        help="How many batches of 16 of them, from all over the folder.  [default: 32, 512 images]",
    ),
    click.option(
        "--calibration-method",
        type=click.Choice(["auto", "entropy", "percentile", "minmax"]),
        help="What is cut of a range: what loses least information, all above 99.99 %, nothing, or that of the three "
        "which changes the answers least.  [default: auto]",
    ),
    click.option(
        "--int8-keep",
        callback=_names,
        metavar="first,last",
        help="Leave the first convolution, the classifier or both in float16.",
    ),
    click.option(
        "--int8-auto",
        type=click.FloatRange(min=0),
        metavar="LOSS",
        help="Leave in float16 the layers that cost most, until top-1 on --images (one sub-folder per class) is within "
        "LOSS points of float32.",
    ),
)
