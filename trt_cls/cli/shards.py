"""`trt-cls shards`: writes a folder of images to tar files with an index."""

from __future__ import annotations

import re
from pathlib import Path

import click

from trt_cls.cli.options import PATH, common_options
from trt_cls.cli.processes import progress
from trt_cls.errors import RequestError
from trt_cls.files import bytes_in
from trt_cls.stores import output_folder
from trt_cls.terminal import echo
from trt_cls.text import counted

LEAST = 10**5


@click.command("shards")
@click.argument("folder", type=PATH)
@click.option("-o", "--output", "output", type=PATH, required=True, metavar="OUT", help="Folder to write to.")
@click.option("--size", default="1GB", help="Largest shard, as in 500MB or 1GB.")
@click.option("--name", default="train", help="Beginning of the files' names: NAME-000000.tar, NAME.json.")
@click.option("--unlabeled", is_flag=True, help="Take all images below FOLDER, without classes.")
@common_options
def command(folder: Path, output: Path, size: str, name: str, unlabeled: bool) -> None:
    """Write the images of FOLDER to tar files of a given size, with an index.

    Specs, --dataset and infer -i take them as OUT/train-{000000..000127}.tar. Other tools read them as WebDataset.
    """
    from trt_cls.data.folder import image_folder, listed_images
    from trt_cls.data.samples import ImageFolder
    from trt_cls.data.shard_writer import write_shards

    limit = _bytes(size)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise RequestError(f'--name "{name}": expected letters, digits, _ and -')
    found = ImageFolder(folder, listed_images(folder), ()) if unlabeled else image_folder(folder)
    with progress(len(found.samples)) as done:
        index = write_shards(found, output_folder(output), name, limit, done)
    last = len(index.shards) - 1
    pattern = f"{name}-{{000000..{last:06}}}.tar" if last else f"{name}-000000.tar"
    total = sum(shard.bytes for shard in index.shards)
    images, shards = counted(len(found.samples), "image"), counted(last + 1, "shard")
    echo(f"{images} of {len(found.classes)} classes in {shards}, {total / 1e6:,.1f} MB")
    echo(f"written: {output / pattern}")


def _bytes(size: str) -> int:
    found = bytes_in(size)
    if found is None or found < LEAST:
        raise RequestError(f'--size "{size}": expected a number of bytes from 100kB on, as in 500MB or 1GB')
    return found
