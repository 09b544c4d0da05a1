"""Rules of `extensions.labels`: what multi-label training has no use for is refused, never ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trt_cls.files import is_shards
from trt_cls.spec.problems import Report, shown

if TYPE_CHECKING:
    from trt_cls.spec.experiment import Experiment

REFUSED = {
    "class_weights": "its loss has no weights of classes",
    "balanced_sampling": "an image there has several classes",
    "focal_gamma": "its loss is binary cross-entropy",
    "bce_loss": "that is its loss already",
    "distillation": "which compares probabilities that add up to 1",
}
"""Extensions that multi-label training does not have, and why."""
DATASETS = {"train_config": ("train_dataset_path", "val_dataset_path"), "eval_config": ("eval_dataset_path",)}
METRICS = ("mAP", "macro_f1", "loss")
"""Of best_metric."""


def check_labels(experiment: Experiment, report: Report) -> None:
    """Reports fields that contradict `extensions.labels`, or need it."""
    extensions, evaluation = experiment.extensions, experiment.eval_config
    name, metric = extensions.labels, extensions.best_metric
    if not name:
        if metric == "mAP" and report.sound("extensions.best_metric"):
            report.add("extensions.best_metric", "mAP found without extensions.labels, expected another, or both")
        if extensions.threshold_precision and report.sound("extensions.threshold_precision"):
            found = f"{extensions.threshold_precision} found without extensions.labels"
            report.add("extensions.threshold_precision", f"{found}, expected both, or the field left out")
        return
    if ("/" in name or name in (".", "..")) and report.sound("extensions.labels"):
        report.add("extensions.labels", f'{shown(name)} found, expected the name of a file, as in "labels.csv"')
    for field, reason in REFUSED.items():
        path = f"extensions.{field}"
        if getattr(extensions, field) and report.sound(path):
            report.add(path, f"found with extensions.labels, {reason}; expected the field left out")
    for section, fields in DATASETS.items():
        for field in fields:
            path, dataset = f"{section}.{field}", getattr(getattr(experiment, section), field, "")
            if is_shards(dataset) and report.sound(path):
                report.add(
                    path,
                    f"shards ({shown(dataset)}) found with extensions.labels, whose images have any number of classes; "
                    f"expected a folder with the file {name}",
                )
    path = "extensions.best_metric"
    if metric not in METRICS and (metric != "top_1" or report.given(path)) and report.sound(path):
        report.add(path, f"{shown(metric)} found with extensions.labels, expected one of {', '.join(METRICS)}")
    path = "eval_config.top_k"
    if evaluation and evaluation.top_k != type(evaluation).top_k and report.sound(path):
        found = f"{evaluation.top_k} found with extensions.labels, whose images have any number of classes"
        report.add(path, f"{found}; expected the field left out")


def with_its_metric(experiment: Experiment, report: Report) -> Experiment:
    """`experiment` with mAP as its best_metric, where it has labels and names none."""
    extensions = experiment.extensions
    if not extensions.labels or report.given("extensions.best_metric"):
        return experiment
    return replace(experiment, extensions=replace(extensions, best_metric="mAP"))
