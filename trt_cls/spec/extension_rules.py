"""What relates the fields of `extensions` to each other and to the rest of a spec. Ranges stand in `experiment.py`."""

from __future__ import annotations

import os

from trt_cls.spec.experiment import Experiment, Extensions, TrainConfig
from trt_cls.spec.report import Report, shown


def check_extensions(experiment: Experiment, report: Report) -> None:
    """Reports everything that is wrong between the extensions and other fields."""
    if experiment.train_config is not None:
        _check_padding(experiment, report)
        _check_average(experiment.extensions, experiment.train_config, report)
        _check_microbatches(experiment.extensions, experiment.train_config, report)
        _check_quantization(experiment.extensions, experiment.train_config, report)


def check_teacher(experiment: Experiment, report: Report) -> None:
    """Reports a teacher that is no file."""
    path, asked = "extensions.distillation.teacher", experiment.extensions.distillation
    if asked and report.sound(path) and not os.path.isfile(asked.teacher):
        report.add(path, f"{shown(asked.teacher)} is no such file, expected a model file, or the block left out")


def _check_padding(experiment: Experiment, report: Report) -> None:
    path, padding = "extensions.crop_padding", experiment.extensions.crop_padding
    if not padding or not report.sound(path):
        return
    if experiment.train_config is not None and experiment.train_config.enable_random_crop:
        default = "" if report.given("train_config.enable_random_crop") else " (the default)"
        found = f"{padding} found with train_config.enable_random_crop true{default}"
        report.add(path, f"{found}, expected one way to crop: set enable_random_crop to false, or leave this out")
    if experiment.model_config is not None and report.sound("model_config.input_image_size"):
        side = min(experiment.model_config.input_shape[1:])
        if padding >= side:
            report.add(path, f"{padding} found, expected less than the network's shorter side, {side}")


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
