"""Rules of the `extensions` block: what goes together, and with the fields of other blocks.

Those of `extensions.labels` are in `multi_label.py`, that of `validation_split` is in `rules.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.problems import Report, check_choice, shown

if TYPE_CHECKING:
    from trt_cls.spec.experiment import Experiment, Extensions, TrainConfig


def check_extensions(experiment: Experiment, report: Report) -> None:
    """Reports the problems between extensions, and with the fields of other blocks."""
    _check_drop_path(experiment, report)
    _check_checkpointing(experiment, report)
    if experiment.train_config is not None:
        _check_crops(experiment, report)
        _check_padding(experiment, report)
        _check_augmentation(experiment.extensions, report)
        _check_resizing(experiment.extensions, report)
        _check_average(experiment.extensions, experiment.train_config, report)
        _check_microbatches(experiment.extensions, experiment.train_config, report)
        _check_quantization(experiment.extensions, experiment.train_config, report)
        _check_balance(experiment.extensions, report)
        _check_optimizer(experiment.extensions, experiment.train_config, report)


def check_teacher(experiment: Experiment, report: Report) -> None:
    """Reports a teacher that is no file."""
    path, asked = "extensions.distillation.teacher", experiment.extensions.distillation
    if asked and report.sound(path) and not os.path.isfile(asked.teacher):
        report.add(path, f"{shown(asked.teacher)} is no such file, expected a model file, or the block left out")


def _check_padding(experiment: Experiment, report: Report) -> None:
    path, padding, model = "extensions.crop_padding", experiment.extensions.crop_padding, experiment.model_config
    if padding and model is not None and report.sound(path, "model_config.input_image_size"):
        side = min(model.input_shape[1:])
        if padding >= side:
            report.add(path, f"{padding} found, expected less than the network's shorter side, {side}")


def _check_drop_path(experiment: Experiment, report: Report) -> None:
    """What few of our own networks have."""
    own = ARCHITECTURES.get(experiment.model_config.arch) if experiment.model_config else None
    path, drop_path = "extensions.drop_path", experiment.extensions.drop_path
    if drop_path and own and not own.has_drop_path and report.sound(path, "model_config.arch"):
        found = f'{shown(drop_path)} found with arch "{own.name}"'
        expected = "an EfficientNet, or a network of timm or torchvision there, or the field left out"
        report.add(path, f"{found}, expected {expected}")


def _check_checkpointing(experiment: Experiment, report: Report) -> None:
    path, model, train = "extensions.gradient_checkpointing", experiment.model_config, experiment.train_config
    if not experiment.extensions.gradient_checkpointing or not report.sound(path):
        return
    if model and model.arch.startswith("torchvision/") and report.sound("model_config.arch"):
        report.add(path, f"true found with arch {shown(model.arch)}, expected a built-in network or one of timm there")
    if train and len(train.model_parallelism) > 1 and report.sound("train_config.model_parallelism"):
        found = f"true found with {len(train.model_parallelism)} shares in train_config.model_parallelism"
        report.add(path, f"{found}, expected one of the two: what dropout drops can be repeated on one device only")


def _check_crops(experiment: Experiment, report: Report) -> None:
    """There is one way to crop."""
    train, extensions = experiment.train_config, experiment.extensions
    padding, crop = extensions.crop_padding, extensions.random_resized_crop
    for name, shown_value in (("crop_padding", f"{padding} "), ("random_resized_crop", "")):
        path = f"extensions.{name}"
        if getattr(extensions, name) and train is not None and train.enable_random_crop and report.sound(path):
            default = "" if report.given("train_config.enable_random_crop") else " (the default)"
            found = f"{shown_value}found with train_config.enable_random_crop true{default}"
            report.add(path, f"{found}, expected one way to crop: set enable_random_crop to false, or leave this out")
    if crop and padding and report.sound("extensions.random_resized_crop"):
        report.add("extensions.random_resized_crop", f"found with crop_padding {padding}, expected one way to crop")


def _check_augmentation(extensions: Extensions, report: Report) -> None:
    for name in ("scale", "ratio"):
        path = f"extensions.random_resized_crop.min_{name}"
        low, high = (getattr(extensions.random_resized_crop, f"{end}_{name}", 0.0) for end in ("min", "max"))
        if low > high and report.sound(path, f"extensions.random_resized_crop.max_{name}"):
            report.add(path, f"{low} found, expected at most max_{name}, {high}")
    for name, other, both in (
        ("trivial_augment", "rand_augment", extensions.trivial_augment and extensions.rand_augment),
        ("bce_loss", "distillation", extensions.bce_loss and extensions.distillation),
    ):
        if both and report.sound(f"extensions.{name}"):
            report.add(f"extensions.{name}", f"true found with extensions.{other}, expected one of the two")


def _check_resizing(extensions: Extensions, report: Report) -> None:
    asked, block = extensions.progressive_resizing, "extensions.progressive_resizing"
    path, other = f"{block}.delay_fraction", f"{block}.finetune_fraction"
    if asked and asked.delay_fraction + asked.finetune_fraction > 1 and report.sound(path, other):
        found = f"{asked.delay_fraction} found with finetune_fraction {asked.finetune_fraction}"
        report.add(path, f"{found}, expected at most 1 for both together")
    path, patience = "extensions.early_stopping_patience", extensions.early_stopping_patience
    if asked and patience and report.sound(path, block):
        found = f"{patience} found with progressive_resizing, with whose small images validation does not get better"
        report.add(path, f"{found}; expected one of the two")


def _check_average(extensions: Extensions, train: TrainConfig, report: Report) -> None:
    path, epochs = "extensions.average_checkpoints", train.n_epochs
    if extensions.average_checkpoints > epochs and report.sound(path, "train_config.n_epochs"):
        report.add(path, f"{extensions.average_checkpoints} found, expected at most train_config.n_epochs, {epochs}")


def _check_microbatches(extensions: Extensions, train: TrainConfig, report: Report) -> None:
    path, parts = "extensions.microbatches", extensions.microbatches
    if parts == 1 or not report.sound(path):
        return
    stages = train.model_parallelism
    if len(stages) < 2 and report.sound("train_config.model_parallelism"):
        found = f"{parts} found with {len(stages)} shares in train_config.model_parallelism"
        report.add(path, f"{found}, expected two or more, or this left out")
    if 2 * parts > train.batch_size_per_gpu and report.sound("train_config.batch_size_per_gpu"):
        most = f"half of train_config.batch_size_per_gpu, {train.batch_size_per_gpu}"
        report.add(path, f"{parts} found, expected at most {most}: a part has two images or more")


def _check_quantization(extensions: Extensions, train: TrainConfig, report: Report) -> None:
    path = "extensions.quantization"
    if extensions.quantization and not train.pretrained_model_path and report.sound(path):
        found = "found without train_config.pretrained_model_path"
        report.add(path, f"{found}, expected a trained model there, whose ranges INT8 takes, or the block left out")


def _check_balance(extensions: Extensions, report: Report) -> None:
    path = "extensions.class_weights"
    if extensions.class_weights and extensions.balanced_sampling and report.sound(path):
        found = "found with extensions.balanced_sampling true, and either makes up for the classes' sizes"
        report.add(path, f"{found}, expected one of the two")
    path = "extensions.repeated_augment"
    if extensions.balanced_sampling and extensions.repeated_augment > 1 and report.sound(path):
        found = f"{extensions.repeated_augment} found with extensions.balanced_sampling true"
        report.add(path, f"{found}, which repeats images itself; expected one of the two")
    path = "extensions.bce_loss"
    if extensions.bce_loss and (extensions.class_weights or extensions.focal_gamma) and report.sound(path):
        found = "true found with class_weights or focal_gamma, which change cross-entropy"
        report.add(path, f"{found}; expected one of the two")


def _check_optimizer(extensions: Extensions, train: TrainConfig, report: Report) -> None:
    check_choice("extensions.optimizer", extensions.optimizer, report)
    path, penalty = "extensions.optimizer", train.reg_config
    if extensions.optimizer and penalty and penalty.type != "None" and report.sound(path, "train_config.reg_config"):
        found = f"found with train_config.reg_config.type {penalty.type}"
        report.add(path, f"{found}, expected type None there: these optimizers have a weight_decay of their own")
    path, schedule = "extensions.warm_up_steps", train.lr_config
    chosen = (schedule.cosine or schedule.soft_anneal) if schedule else None
    if extensions.warm_up_steps and chosen and chosen.soft_start and report.sound(path, "train_config.lr_config"):
        found = f"{extensions.warm_up_steps} found with soft_start {chosen.soft_start} in train_config.lr_config"
        report.add(path, f"{found}, expected one of the two")
