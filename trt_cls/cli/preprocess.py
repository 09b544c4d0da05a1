"""`trt-cls preprocess`: the exact input tensor of the network, as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import PATH, Executors, common_options, model_option, spec_options
from trt_cls.errors import DataError, RequestError
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from PIL.Image import Image

    from trt_cls.contract import Preprocessing
    from trt_cls.preprocessing.image_file import Part
    from trt_cls.preprocessing.pillow import Floats
    from trt_cls.spec.experiment import Experiment

EPOCH = 1
"""The epoch whose random numbers `--split train` uses."""
GPU_BATCH = 32
PICTURES = 100
"""Most images of a sheet."""
GAP = 4
"""Pixels between them."""


@click.command("preprocess")
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@spec_options(required=False)
@model_option(required=False, description="Model file, whose own preprocessing is used.")
@click.option("-o", "--output", type=PATH, help="File to write, OUT.npy.")
@click.option(
    "--sheet", type=PATH, metavar="OUT.png", help="Picture to write: the images side by side, as the network sees them."
)
@click.option(
    "--split",
    type=click.Choice(["val", "train"]),
    default="val",
    help="train: with the random augmentation of the spec, from its random_seed.",
)
@click.option(
    "--executor",
    type=Executors(["cpu", "cuda"]),
    default="cpu",
    help="What resizes and normalizes the images, with the same result: the CPU, or an NVIDIA GPU.",
)
@common_options
def command(
    images: tuple[Path, ...],
    spec: Path | None,
    overrides: tuple[str, ...],
    model: Path | None,
    output: Path | None,
    sheet: Path | None,
    split: str,
    executor: str,
) -> None:
    """Write the exact input tensor of the network, float32 [N,C,H,W], for images, folders of images and shards.

    With --sheet, also or instead, as a picture: its pixels are those of the tensor, without the normalization.
    """
    import numpy as np

    from trt_cls.data.folder import listed_images
    from trt_cls.files import atomic, results_folder

    if output is None and sheet is None:
        raise RequestError("nothing to write; expected -o OUT.npy, --sheet OUT.png, or both; name one")
    for flag, path, suffix in (("-o", output, ".npy"), ("--sheet", sheet, ".png")):
        if path and path.suffix != suffix:
            raise RequestError(f"{flag} {path}: expected a file name ending in {suffix}")
    preprocessing, train = _request(spec, overrides, model, split)
    if train and executor == "cuda":
        raise RequestError("--executor cuda does not augment; expected --split val with it; or use --executor cpu")
    sources = [sample.source for image in images for sample in listed_images(image)]
    tensor = _gpu_tensor(sources, preprocessing) if executor == "cuda" else _cpu_tensor(sources, preprocessing, train)
    if output:
        results_folder(output.parent)
        with atomic(output) as beside:
            np.save(beside, tensor)
        echo(f"{output}: float32 {list(tensor.shape)}")
    if sheet:
        results_folder(sheet.parent)
        with atomic(sheet) as beside:
            _sheet(tensor[:PICTURES], preprocessing).save(beside)
        echo(f"{sheet}: {min(len(tensor), PICTURES)} of {len(tensor)} images")


def _request(
    spec: Path | None, overrides: tuple[str, ...], model: Path | None, split: str
) -> tuple[Preprocessing, Experiment | None]:
    """The preprocessing; and for the training split, the experiment with its augmentation."""
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.preprocessing.description import preprocessing_from_spec
    from trt_cls.spec import load

    if spec and not model:
        experiment = load(spec, overrides=overrides, needs=("train_config",), paths=False)
        return preprocessing_from_spec(experiment, "train"), experiment if split == "train" else None
    if spec or not model:
        raise RequestError("expected either a spec or a model; name one with -e SPEC or -m MODEL")
    if split == "train":
        raise RequestError("--split train: a model file does not say how to augment; name a spec with -e SPEC")
    return read_contract(model).preprocessing, None


def _gpu_tensor(sources: Sequence[Path | Part], preprocessing: Preprocessing) -> Floats:
    from contextlib import closing

    import numpy as np

    from trt_cls.preprocessing.cuda import CudaPreprocessing
    from trt_cls.preprocessing.images import read

    with closing(CudaPreprocessing(preprocessing)) as gpu:
        batches = (sources[start : start + GPU_BATCH] for start in range(0, len(sources), GPU_BATCH))
        return np.concatenate(
            [gpu.preprocess([read(source, preprocessing.channels) for source in batch]) for batch in batches]
        )


def _sheet(tensor: Floats, preprocessing: Preprocessing) -> Image:
    """The images of a tensor in rows, as near to a square as their number allows."""
    import numpy as np
    from PIL import Image

    from trt_cls.preprocessing.pillow import pixels_from_input

    columns = math.ceil(math.sqrt(len(tensor)))
    across, down = preprocessing.width + GAP, preprocessing.height + GAP
    size = columns * across - GAP, -(-len(tensor) // columns) * down - GAP
    sheet = Image.new("L" if preprocessing.channels == 1 else "RGB", size, "white")
    for number, pixels in enumerate(pixels_from_input(tensor, preprocessing)):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(np.squeeze(pixels)), (column * across, row * down))
    return sheet


def _cpu_tensor(sources: Sequence[Path | Part], preprocessing: Preprocessing, experiment: Experiment | None) -> Floats:
    import numpy as np

    from trt_cls.data.augmentation import EMPTY, augment, draws_for
    from trt_cls.data.transforms import Transforms
    from trt_cls.preprocessing.images import decode
    from trt_cls.preprocessing.pillow import fit, normalize

    train = experiment.train_config if experiment else None
    tensor = np.empty((len(sources), *preprocessing.input_shape), preprocessing.input_type)
    for index, source in enumerate(sources):
        image, erased = decode(source, preprocessing.channels), EMPTY
        try:
            if train and experiment:
                draws, extensions = draws_for(train.random_seed, EPOCH, index), experiment.extensions
                transforms = Transforms(extensions, train.random_seed)
                pixels = augment(image, preprocessing, train, draws, extensions)
                pixels = transforms.changed(pixels, EPOCH, index)
                erased = transforms.erased(preprocessing.input_shape, EPOCH, index)
            else:
                pixels = fit(image, preprocessing)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        normalize(pixels, preprocessing, tensor[index])
        tensor[index, :, erased.top : erased.bottom, erased.left : erased.right] = 0
    return tensor
