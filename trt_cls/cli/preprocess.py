"""`trt-cls preprocess`: the exact input tensor of the network, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.cli.options import PATH, Executors, common_options, model_option, spec_options
from trt_cls.errors import DataError, RequestError
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.contract import Preprocessing
    from trt_cls.preprocessing.pillow import Floats
    from trt_cls.spec.experiment import TrainConfig

EPOCH = 1
"""The epoch whose random numbers `--split train` uses."""
GPU_BATCH = 32


@click.command("preprocess")
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@spec_options(required=False)
@model_option(required=False, description="Model file, whose own preprocessing is used.")
@click.option("-o", "--output", required=True, type=PATH, help="File to write, OUT.npy.")
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
    output: Path,
    split: str,
    executor: str,
) -> None:
    """Write the exact input tensor of the network, float32 [N,C,H,W], for images and folders of images."""
    import numpy as np

    from trt_cls.data.folder import list_images
    from trt_cls.files import atomic, results_folder

    if output.suffix != ".npy":
        raise RequestError(f"-o {output}: expected a file name ending in .npy")
    preprocessing, train = _request(spec, overrides, model, split)
    if train and executor == "cuda":
        raise RequestError("--executor cuda does not augment; expected --split val with it; or use --executor cpu")
    paths = [path for image in images for path in list_images(image)]
    tensor = _gpu_tensor(paths, preprocessing) if executor == "cuda" else _cpu_tensor(paths, preprocessing, train)
    results_folder(output.parent)
    with atomic(output) as beside:
        np.save(beside, tensor)
    echo(f"{output}: float32 {list(tensor.shape)}")


def _request(
    spec: Path | None, overrides: tuple[str, ...], model: Path | None, split: str
) -> tuple[Preprocessing, TrainConfig | None]:
    """The preprocessing; and for the training split, the train_config with its augmentation."""
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.preprocessing.description import preprocessing_from_spec
    from trt_cls.spec import load

    if spec and not model:
        experiment = load(spec, overrides=overrides, needs=("train_config",), paths=False)
        return preprocessing_from_spec(experiment, "train"), experiment.train_config if split == "train" else None
    if spec or not model:
        raise RequestError("expected either a spec or a model; name one with -e SPEC or -m MODEL")
    if split == "train":
        raise RequestError("--split train: a model file does not say how to augment; name a spec with -e SPEC")
    return read_contract(model).preprocessing, None


def _gpu_tensor(paths: Sequence[Path], preprocessing: Preprocessing) -> Floats:
    from contextlib import closing

    import numpy as np

    from trt_cls.preprocessing.cuda import CudaPreprocessing
    from trt_cls.preprocessing.images import read

    with closing(CudaPreprocessing(preprocessing)) as gpu:
        batches = (paths[start : start + GPU_BATCH] for start in range(0, len(paths), GPU_BATCH))
        return np.concatenate(
            [gpu.preprocess([read(path, preprocessing.channels) for path in batch]) for batch in batches]
        )


def _cpu_tensor(paths: Sequence[Path], preprocessing: Preprocessing, train: TrainConfig | None) -> Floats:
    import numpy as np

    from trt_cls.data.augmentation import augment, draws_for
    from trt_cls.preprocessing.images import decode
    from trt_cls.preprocessing.pillow import fit, normalize

    tensor = np.empty((len(paths), *preprocessing.input_shape), preprocessing.input_type)
    for index, path in enumerate(paths):
        image = decode(path, preprocessing.channels)
        try:
            if train:
                pixels = augment(image, preprocessing, train, draws_for(train.random_seed, EPOCH, index))
            else:
                pixels = fit(image, preprocessing)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        normalize(pixels, preprocessing, tensor[index])
    return tensor
