"""From a spec's fields to the numbers of a preprocessing description: what each `preprocess_mode` means.

Does not know: how pixels are computed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import ArtefactError, Problem, SpecError
from trt_cls.spec.rules import CAFFE_MEANS

if TYPE_CHECKING:
    from trt_cls.spec.experiment import EvalConfig, Experiment, TrainConfig

Split = Literal["train", "eval"]

TAO_TORCH_STD = 0.224
"""What TAO's torch mode divides every channel by; the spec means ImageNet's three."""


def preprocessing_from_spec(experiment: Experiment, split: Split) -> Preprocessing:
    """What the spec asks for, in numbers.

    `split` chooses whose `enable_center_crop` holds: "train" is train_config's (validation too), "eval" eval_config's.

    Raises:
        SpecError: the spec has no train_config, where preprocess_mode stands, or not the section of `split`.
    """
    train: TrainConfig = _section(experiment, "train_config")
    section: TrainConfig | EvalConfig = train if split == "train" else _section(experiment, "eval_config")
    channels, height, width = experiment.model_config.input_shape
    mean, std = _mean_and_std(train, channels)
    color_order: Literal["rgb", "bgr"] = "bgr" if train.preprocess_mode == "caffe" else "rgb"
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        crop="center" if section.enable_center_crop else "none",
        filter="bicubic" if experiment.model_config.resize_interpolation_method == "BICUBIC" else "bilinear",
        channel_order="gray" if channels == 1 else color_order,
        divisor={"caffe": 1.0, "torch": 255.0, "tf": 127.5}[train.preprocess_mode],
        mean=mean,
        std=std,
    )


def preprocessing_of_tao(experiment: Experiment, split: Split) -> Preprocessing:
    """What TAO itself makes of the spec, for models that TAO trained."""
    wanted = preprocessing_from_spec(experiment, split)
    torch_mode = experiment.train_config is not None and experiment.train_config.preprocess_mode == "torch"
    return replace(wanted, std=(TAO_TORCH_STD,) * wanted.channels) if torch_mode else wanted


def default_preprocessing_of_tao(input_shape: tuple[int, int, int]) -> Preprocessing:
    """TAO's defaults: caffe mode with ImageNet's means, center crop, bilinear."""
    channels = input_shape[0]
    means, ones = tuple(CAFFE_MEANS[channels].values()), (1.0,) * channels
    return Preprocessing(*input_shape, "center", "bilinear", "gray" if channels == 1 else "bgr", 1.0, means, ones)


def require_spec_fits(
    experiment: Experiment, spec: Path | str, contract: Contract, model: Path, split: Split | None = None
) -> None:
    """Refuses a spec that asks for other pixels than the model was trained on; names of files are for the message.

    `split` None: "eval" where the spec has that section. A model imported from TAO agrees with its own spec. A spec
    without train_config, where preprocess_mode stands, does not say what it wants; the contract holds then.

    Raises:
        ArtefactError: they disagree.
    """
    asked_labels = experiment.extensions.labels
    if bool(asked_labels) != (contract.task == "multi") and (asked_labels or experiment.train_config):
        found = f'has labels "{asked_labels}"' if asked_labels else "has no extensions.labels"
        trained_on = "class folders" if contract.task == "single" else "several labels per image"
        raise ArtefactError(
            f"{spec} and {model} disagree: the spec {found}, and the model was trained on {trained_on}; expected the "
            "spec that the model was trained with; set or remove extensions.labels, or name another model"
        )
    if experiment.train_config is None:
        return
    trained = contract.preprocessing
    split = split or ("eval" if experiment.eval_config else "train")
    of_tao = preprocessing_of_tao(experiment, split)
    wanted = of_tao if trained.std == of_tao.std else preprocessing_from_spec(experiment, split)
    differences = [
        f"{name} is {asked} in the spec and {own} in the model"
        for (name, asked), own in zip(asdict(wanted).items(), asdict(trained).values(), strict=True)
        if asked != own and name != "embedded"
    ]
    if differences:
        raise ArtefactError(
            f"{spec} and {model} disagree on the preprocessing: {'; '.join(differences)}; expected the spec that the "
            "model was trained with; set its fields to the model's, or name another model"
        )


def _mean_and_std(train: TrainConfig, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """In the order of the network's channels: blue, green, red for caffe, red, green, blue otherwise."""
    ones = (1.0,) * channels
    if train.preprocess_mode == "tf":
        return ones, ones
    if train.preprocess_mode == "torch":
        return ((0.449,), (0.226,)) if channels == 1 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    imagenet = CAFFE_MEANS[channels]
    means = train.image_mean or imagenet
    return tuple(float(means[key]) for key in imagenet), ones


def _section(experiment: Experiment, name: str) -> Any:
    section = getattr(experiment, name)
    if section is None:
        message = (
            "missing, and the preprocessing depends on it; add the section, or name a model file, which carries its own"
        )
        raise SpecError([Problem("", name, message)])
    return section
