"""`trt-cls models`: the architectures that a spec can name, measured on networks without memory for weights."""

from __future__ import annotations

import click

from trt_cls.cli.options import common_options
from trt_cls.errors import require
from trt_cls.spec.architectures import ARCHITECTURES, LIBRARIES, Architecture
from trt_cls.spec.experiment import ModelConfig
from trt_cls.terminal import echo

HEADER = "arch             n_layers   parameters  GFLOPs  freeze_blocks  options"
CLASSES = 1000
SIDE = 224


@click.command("models")
@common_options
def command() -> None:
    """List the architectures: depths, sizes, freeze ids, and the options that change each one's network."""
    require("torch", "Measuring the architectures", "train")
    echo(
        f"Measured with use_batch_norm, {CLASSES:,} classes, 3×{SIDE}×{SIDE}; parameters with the statistics of batch "
        "normalization; GFLOPs: 10⁹ multiply-adds per image\n"
    )
    click.secho(HEADER, bold=True)
    for architecture in ARCHITECTURES.values():
        last_columns = f"  {_blocks_and_options(architecture)}"
        for depth in architecture.depths or (None,):
            name = architecture.name if last_columns else ""
            echo(f"{name:15}  {depth or '':>8}  {_sizes(architecture, depth)}{last_columns}")
            last_columns = ""
    names = " or ".join(f"{library}/NAME" for library in LIBRARIES)
    echo(f"\n{names}: any classification network of the library, at the spec's input_image_size")


def _blocks_and_options(architecture: Architecture) -> str:
    blocks = f"{architecture.freeze_blocks[0]} to {architecture.freeze_blocks[-1]}"
    activation = f"activation ({', '.join(architecture.activations)})"
    options = ", ".join(activation if name == "activation" else name for name in architecture.options)
    return f"{blocks:13}  {options}"


def _sizes(architecture: Architecture, depth: int | None) -> str:
    """Parameters, and multiply-adds of one image."""
    import torch

    from trt_cls.models import build
    from trt_cls.models.network import count_parameters, multiply_adds

    size = f"3,{SIDE},{SIDE}"
    config = ModelConfig(arch=architecture.name, n_layers=depth or 18, input_image_size=size, use_batch_norm=True)
    with torch.device("meta"):
        network = build(config, CLASSES)
    return f"{count_parameters(network).total:11,}  {multiply_adds(network, config.input_shape) / 1e9:6.2f}"
