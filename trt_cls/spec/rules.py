"""Rules between the fields of a spec, the architectures and the file system.

A rule is skipped if a field that it depends on has a problem already, so that one mistake is one problem. Ranges of
single fields are in `experiment.py`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from trt_cls.errors import DataError, did_you_mean
from trt_cls.files import EXAMPLE, is_shards, shard_paths
from trt_cls.spec.architectures import (
    ARCHITECTURES,
    HUB,
    LIBRARIES,
    Architecture,
    ModelConfig,
    family_and_depth,
    is_external,
)
from trt_cls.spec.differences import encrypted
from trt_cls.spec.extension_rules import check_extensions, check_teacher
from trt_cls.spec.fields import LARGEST_SIDE, MOST_PIXELS, SIZES, SMALLEST_SIDE
from trt_cls.spec.multi_label import check_labels
from trt_cls.spec.problems import Report, check_choice, shown

if TYPE_CHECKING:
    from trt_cls.spec.experiment import Experiment, RegConfig, SoftAnnealLr, TrainConfig

CAFFE_MEANS = {3: {"b": 103.939, "g": 116.779, "r": 123.68}, 1: {"l": 117.3786}}
"""ImageNet's means by number of channels: the default of `image_mean` in caffe mode."""

_SIZE = re.compile(r"\s*([13])\s*,\s*(\d{1,5})\s*,\s*(\d{1,5})\s*", re.ASCII)
_EXTERNAL_OPTIONS = ("arch", "input_image_size", "resize_interpolation_method", "byom_model")
"""Fields of model_config that do not depend on the family."""
_SCOPES = ("Conv2D", "Dense")
FOLDERS = ("train_dataset_path", "val_dataset_path", "eval_dataset_path")
_OF_DEMO = "runs/demo/data/"
"""Where `make demo` writes its images."""

log = logging.getLogger("trt_cls")


def check_relations(experiment: Experiment, report: Report) -> None:
    """Reports the problems between fields."""
    if experiment.model_config is not None:
        check_model(experiment.model_config, report)
    if experiment.train_config is not None:
        _check_train(experiment.train_config, report)
        if experiment.model_config is not None:
            _check_means(experiment.model_config, experiment.train_config, report)
    _check_split(experiment, report)
    check_extensions(experiment, report)
    check_labels(experiment, report)


def check_model(model: ModelConfig, report: Report) -> None:
    """Reports the problems between the fields of `model_config`."""
    if report.sound("model_config.arch"):
        _check_architecture(model, report)
    if report.sound("model_config.input_image_size"):
        _check_size(model.input_image_size, report)


def check_paths(experiment: Experiment, sections: Sequence[str], report: Report) -> None:
    """Reports missing folders, pretrained models and teachers of `sections`."""
    if "train_config" in sections:
        check_teacher(experiment, report)
    for section in sections:
        config = getattr(experiment, section)
        for name in FOLDERS:
            path, folder = f"{section}.{name}", getattr(config, name, None)
            if folder == "" and experiment.extensions.validation_split and name != "train_dataset_path":
                continue
            if folder is not None and report.sound(path) and (fault := _fault_of_dataset(folder)):
                report.add(path, f"{fault}; spec check --no-paths leaves it out")
        path, model = f"{section}.pretrained_model_path", getattr(config, "pretrained_model_path", "")
        from_hub = model == HUB and experiment.model_config and is_external(experiment.model_config.arch)
        if model and not from_hub and report.sound(path) and not os.path.isfile(model):
            wanted = encrypted(model) or "expected a model file, or the field left out"
            message = f"{shown(model)} is no such file, {wanted}"
            hint = f'; "{HUB}" is for networks of {" and ".join(LIBRARIES)}' if model == HUB else ""
            report.add(path, message + hint)


def _fault_of_dataset(path: str) -> str:
    """Why `path` names neither a folder nor shards; or nothing."""
    if os.path.isdir(path):
        return ""
    if is_shards(path):
        try:
            shard_paths(path)
        except DataError as error:
            return str(error)
        return ""
    found = "no folder" if os.path.exists(path) else "no such folder"
    made = "; make demo writes it" if path.startswith(_OF_DEMO) else ""
    return f"{shown(path)} is {found}, expected one with a sub-folder of images per class, or shards ({EXAMPLE}){made}"


def resolved(experiment: Experiment, report: Report) -> Experiment:
    """The experiment with the effective `image_mean`: the defaults filled in for caffe, empty for the other modes."""
    train = experiment.train_config
    if train is None:
        return experiment
    means = train.image_mean
    if train.preprocess_mode == "caffe":
        means = means or CAFFE_MEANS[experiment.model_config.input_shape[0]]
    elif means:
        where, path = report.where("train_config.image_mean"), "train_config.image_mean"
        log.warning(
            '%s: %s: no effect with preprocess_mode "%s", only with "caffe"', where, path, train.preprocess_mode
        )
        means = {}
    return replace(experiment, train_config=replace(train, image_mean=dict(means)))


def _check_architecture(model: ModelConfig, report: Report) -> None:
    if model.byom_model:
        message = (
            f"{shown(model.byom_model)} found, expected no bring-your-own model: build one of the architectures here, "
            "or give your network as an ONNX file to evaluate and infer (-m)"
        )
        report.add("model_config.byom_model", message)
    architecture = ARCHITECTURES.get(model.arch)
    if architecture is not None:
        _check_options(model, architecture, report)
    elif is_external(model.arch):
        _check_external(model, report)
    else:
        report.add("model_config.arch", unknown_architecture(model.arch))


def _check_external(model: ModelConfig, report: Report) -> None:
    for name, default in vars(ModelConfig()).items():
        path, value = f"model_config.{name}", getattr(model, name)
        if name not in _EXTERNAL_OPTIONS and value != default and report.sound(path):
            found = shown(value) if isinstance(value, (bool, int, float)) else "values"
            report.add(path, f"{found} found, expected the field left out: {model.arch} has no such option")
    size = "model_config.input_image_size"
    if model.arch.startswith("torchvision/") and model.input_image_size.strip().startswith("1") and report.sound(size):
        report.add(size, "1 channel found, expected 3: torchvision's networks take no other number, timm's do")


def unknown_architecture(name: str) -> str:
    """The message for an architecture that there is not."""
    library = name.partition("/")[0]
    if both := family_and_depth(name):
        return (
            f'{shown(name)} found, expected a family and its depth; did you mean arch: "{both[0]}" n_layers: {both[1]}?'
        )
    if library in LIBRARIES:
        return f'{shown(name)} found, expected the name of a network after "{library}/", as in "{library}/resnet18"'
    known = ", ".join((*ARCHITECTURES, *(f"{library}/NAME" for library in LIBRARIES)))
    return f"{shown(name)} found, expected one of {known}{did_you_mean(name, tuple(ARCHITECTURES))}"


def _check_options(model: ModelConfig, architecture: Architecture, report: Report) -> None:
    def refuse(name: str, found: Any, expected: str) -> None:
        path = f"model_config.{name}"
        if report.sound(path):
            default = "" if report.given(path) else " (the default)"
            report.add(path, f"{shown(found)}{default} found, expected {expected}")

    name = architecture.name
    if architecture.depths and model.n_layers not in architecture.depths:
        refuse("n_layers", model.n_layers, f"one of {architecture.depths_text} for {name}")
    blocks = architecture.freeze_blocks
    for block in model.freeze_blocks:
        if block not in blocks:
            refuse("freeze_blocks", block, f"integers from {blocks[0]} to {blocks[-1]} for {name}")
    if model.all_projections and not architecture.has_shortcuts:
        with_shortcuts = [other.name for other in ARCHITECTURES.values() if other.has_shortcuts]
        refuse("all_projections", True, f"false: {name} has no shortcuts, only {' and '.join(with_shortcuts)} do")
    if model.dropout and not architecture.has_dropout:
        with_dropout = [other.name for other in ARCHITECTURES.values() if other.has_dropout]
        refuse("dropout", model.dropout, f"0: {name} does not use it, only {' and '.join(with_dropout)} do")
    if model.activation and model.activation.activation_type not in architecture.activations:
        allowed = ", ".join(architecture.activations)
        refuse("activation.activation_type", model.activation.activation_type, f"one of {allowed} for {name}")


def _check_size(size: str, report: Report) -> None:
    match = _SIZE.fullmatch(size)
    sides = (int(match[2]), int(match[3])) if match else (0, 0)
    if min(sides) < SMALLEST_SIDE or max(sides) > LARGEST_SIDE or prod(sides) > MOST_PIXELS:
        expected = f'"C,H,W": C 1 or 3, {SIZES}, as in "3,224,224"'
        report.add("model_config.input_image_size", f"{shown(size)} found, expected {expected}")


def _check_train(train: TrainConfig, report: Report) -> None:
    for name in ("optimizer", "lr_config"):
        check_choice(f"train_config.{name}", getattr(train, name), report)
    if train.reg_config is not None:
        _check_penalty(train.reg_config, report)
    if train.lr_config is not None and train.lr_config.soft_anneal is not None:
        _check_annealing(train.lr_config.soft_anneal, report)


def _check_penalty(penalty: RegConfig, report: Report) -> None:
    scope, weight_decay = "train_config.reg_config.scope", "train_config.reg_config.weight_decay"
    words = [word.strip().lower() for word in penalty.scope.split(",")]
    if report.sound(scope) and not set(words) <= {known.lower() for known in _SCOPES}:
        report.add(scope, f"{shown(penalty.scope)} found, expected Conv2D, Dense or both, comma-separated")
    if not report.sound("train_config.reg_config.type", weight_decay) or penalty.type == "None":
        return
    if not report.given(weight_decay):
        report.add(weight_decay, "missing, expected a number in (0, 1)")
    elif not 0 < penalty.weight_decay < 1:
        report.add(weight_decay, f"{penalty.weight_decay} found, expected a number in (0, 1), or type None")


def _check_annealing(schedule: SoftAnnealLr, report: Report) -> None:
    block = "train_config.lr_config.soft_anneal"
    path, points = f"{block}.annealing_points", schedule.annealing_points
    if not report.sound(path, f"{block}.soft_start"):
        return
    if any(later < earlier for earlier, later in pairwise(points)):
        report.add(path, f"{', '.join(map(str, points))} found, expected them in rising order")
    elif points and points[0] <= schedule.soft_start:
        report.add(path, f"{points[0]} found, expected points after soft_start, {schedule.soft_start}")


def _check_means(model: ModelConfig, train: TrainConfig, report: Report) -> None:
    path = "train_config.image_mean"
    if not train.image_mean or not report.sound(path, "train_config.preprocess_mode", "model_config.input_image_size"):
        return
    channels = model.input_shape[0]
    expected = CAFFE_MEANS[channels]
    if train.preprocess_mode == "caffe" and train.image_mean.keys() != expected.keys():
        found = ", ".join(shown(key) for key in sorted(train.image_mean))
        wanted = "all of b, g, r" if channels == 3 else "l"
        report.add(path, f"keys {found} found, expected {wanted} for {channels} channel{'s' * (channels > 1)}")


def _check_split(experiment: Experiment, report: Report) -> None:
    """Validation has one source; evaluation may have a test set of its own beside the split."""
    split, train = experiment.extensions.validation_split, experiment.train_config
    if not report.sound("extensions.validation_split"):
        return
    if split and train is None and report.sound("train_config"):
        report.add("train_config", "missing, expected the training whose images extensions.validation_split divides")
    for path in ("train_config.val_dataset_path", "eval_config.eval_dataset_path"):
        section, _, name = path.partition(".")
        config = getattr(experiment, section)
        folder = getattr(config, name, None)
        if not split and folder == "" and not report.given(path):
            how = "or extensions { validation_split: 0.2 } to hold out a part of train_dataset_path"
            report.add(path, f"missing, expected a folder with one sub-folder of images per class, {how}")
        elif split and folder and (config is train or (train and _same_folder(folder, train.train_dataset_path))):
            found = f"{shown(folder)} found with extensions.validation_split {split}"
            report.add(path, f"{found}, which holds out images of its own: expected one of the two")


def _same_folder(one: str, other: str | None) -> bool:
    return other is not None and os.path.abspath(one) == os.path.abspath(other)
