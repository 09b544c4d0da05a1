"""`trt-cls models`: the architectures that a spec can name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import common_options
from trt_cls.errors import MissingDependency
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.models.families import Member

HEADER = "arch             n_layers   parameters  GFLOPs  freeze_blocks  options"


@click.command("models")
@common_options
def command() -> None:
    """List the architectures: depths, sizes, freeze ids, and the options that change each one's network."""
    if find_spec("torch") is None:
        raise MissingDependency("torch", "Measuring the architectures", "train")
    from trt_cls.models.families import CLASSES, SIDE, members
    from trt_cls.spec.architectures import LIBRARIES

    echo(f"Measured with use_batch_norm, {CLASSES:,} classes, 3×{SIDE}×{SIDE}; GFLOPs: 10⁹ multiply-adds per image\n")
    click.secho(HEADER, bold=True)
    previous = None
    for member in members():
        echo(_row(member, first=member.architecture != previous))
        previous = member.architecture
    names = " or ".join(f"{library}/NAME" for library in LIBRARIES)
    echo(f"\n{names}: any classification network of the library; at the spec's input_image_size")


def _row(member: Member, *, first: bool) -> str:
    known = member.architecture
    sizes = f"{member.n_layers or '':>8}  {member.parameters:11,}  {member.multiply_adds / 1e9:6.2f}"
    if not first:
        return f"{'':15}  {sizes}"
    blocks = f"{known.freeze_blocks[0]} to {known.freeze_blocks[-1]}"
    options = ", ".join(
        f"{name} ({', '.join(known.activations)})" if name == "activation" else name for name in known.options
    )
    return f"{known.name:15}  {sizes}  {blocks:13}  {options}"
