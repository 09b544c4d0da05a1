"""Curves, configuration and final files to Weights & Biases or MLflow, through their own libraries.

A run's number is kept in the results folder, so that a training that is resumed goes on with the same run. Where to
send it, and whether at all, is told to the libraries as they document it: WANDB_MODE, MLFLOW_TRACKING_URI and so on.


TensorBoard: the curves of each epoch and, where the spec's visualizer asks for them, images and histograms.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_cls.contract import Preprocessing
from trt_cls.errors import RequestError, TrtClsError, one_line, require
from trt_cls.files import write_text
from trt_cls.spec.experiment import Visualizer, WandbConfig
from trt_cls.training.logs.console import Reporter
from trt_cls.training.logs.files import EpochRow

PROJECT = "trt-cls"
"""The project, or MLflow's experiment, where neither spec nor environment names one."""


class Logger(Protocol):
    """One run of one tracker."""

    run_id: str

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Adds the points of an epoch."""

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """Hands over `files` and ends the run."""


class Loggers:
    """Those that were asked for by name. One that fails in the midst is told and left, the training goes on.

    Raises:
        MissingDependency: a library is not installed.
        TrtClsError: a run can't be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        root: Path,
        fields: Mapping[str, Any],
        wandb_config: WandbConfig | None,
        reporter: Reporter,
    ) -> None:
        self._reporter = reporter
        self._loggers: dict[str, Logger] = {}
        numbers = root / "loggers.json"
        known = _known(numbers)
        for name in names:
            try:
                self._loggers[name] = _opened(name, root, fields, known.get(name), wandb_config)
            except TrtClsError:
                raise
            except Exception as error:  # these libraries raise what they stumble over
                raise TrtClsError(
                    f"--logger {name}: no run could be started ({one_line(error)}); expected its server or an offline "
                    "mode; set its environment variables, or train without it"
                ) from error
        if self._loggers:
            found = known | {name: logger.run_id for name, logger in self._loggers.items()}
            write_text(numbers, json.dumps(found) + "\n")

    def epoch(self, row: EpochRow) -> None:
        """Adds the points of an epoch."""
        values = {name: value for name, value in asdict(row).items() if name != "epoch"}
        for name, logger in list(self._loggers.items()):
            try:
                logger.epoch(row.epoch, values)
            except Exception as error:
                self._leave(name, error)

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """Hands over those of `files` that are there, and ends the runs."""
        for name, logger in list(self._loggers.items()):
            try:
                logger.end([path for path in files if path.exists()], success=success)
            except Exception as error:
                self._leave(name, error)

    def _leave(self, name: str, error: Exception) -> None:
        self._reporter.line(f"--logger {name}: {one_line(error)}; the training goes on without it")
        del self._loggers[name]


class Wandb:
    """A run of Weights & Biases, with the options of `config`, if it is given."""

    def __init__(self, root: Path, fields: Mapping[str, Any], run_id: str | None, config: WandbConfig | None) -> None:
        wandb = require("wandb", "--logger wandb", "wandb")
        options: dict[str, Any] = {"dir": str(root)}
        if config is not None:
            if config.key:
                wandb.login(key=config.key)
            given = {
                "project": config.project, "entity": config.entity, "name": config.name, "notes": config.notes,
                "tags": list(config.tags), "dir": config.wandb_dir,
                "mode": "" if config.mode == "ONLINE" else config.mode.lower(),
            }  # fmt: skip
            options |= {name: value for name, value in given.items() if value}
        if "WANDB_PROJECT" not in os.environ:
            options.setdefault("project", PROJECT)
        if run_id:
            options |= {"id": run_id, "resume": "allow"}
        self._root = root
        self._run = wandb.init(config=dict(fields), **options)
        self.run_id = str(self._run.id)

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """See `Logger.epoch`."""
        self._run.log(dict(values), step=number)

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """See `Logger.end`."""
        for path in files:
            self._run.save(str(path), base_path=str(self._root), policy="now")
        self._run.finish(exit_code=0 if success else 1)


class Mlflow:
    """A run of MLflow, in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, fields: Mapping[str, Any], run_id: str | None) -> None:
        self._client = require("mlflow", "--logger mlflow", "mlflow").MlflowClient()
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
            self.run_id = run_id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.run_id = str(self._client.create_run(number).info.run_id)
        for field, value in fields.items():
            self._client.log_param(self.run_id, field, value)

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """See `Logger.epoch`."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=number)

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """See `Logger.end`."""
        for path in files:
            self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, "FINISHED" if success else "FAILED")


def _known(path: Path) -> dict[str, str]:
    """The runs of an earlier part of the training, by the trackers' names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(content, dict) or not all(isinstance(run, str) for run in content.values()):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{path}: can't be read; expected the runs' numbers by tracker, as a training writes them; remove it: "
            "new runs then begin"
        ) from error
    return content


def _opened(name: str, root: Path, fields: Mapping[str, Any], run_id: str | None, config: WandbConfig | None) -> Logger:
    return Wandb(root, fields, run_id, config) if name == "wandb" else Mlflow(fields, run_id)


class Events:
    """The event files of one training; `first_epoch` and later ones of an earlier run are superseded."""

    def __init__(self, folder: Path, visualizer: Visualizer, preprocessing: Preprocessing, first_epoch: int) -> None:
        self._writer = _summary_writer(folder, first_epoch)
        self._visualizer = visualizer
        self._preprocessing = preprocessing

    def images(self, epoch: int, images: Tensor) -> None:
        """Shows the first images of the epoch's first batch, as the network sees them."""
        if self._visualizer.enabled and self._visualizer.num_images:
            shown = pixels_from_input(images[: self._visualizer.num_images], self._preprocessing)
            self._writer.add_images("training images", shown, epoch)

    def epoch(self, row: EpochRow, model: nn.Module) -> None:
        """Adds the points of an epoch."""
        for name, value in asdict(row).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row.epoch)
        if self._visualizer.enabled and self._visualizer.weight_histograms:
            for name, parameter in model.named_parameters():
                self._writer.add_histogram(name, parameter.detach().cpu(), row.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def pixels_from_input(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Network input [n,C,H,W] as RGB or gray pixels, rounded and clipped."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    pixels = ((images.cpu() * std + mean) * preprocessing.divisor).round().clamp(0, 255).to(torch.uint8)
    if preprocessing.channel_order == "bgr":
        pixels = pixels.flip(1)
    return pixels.numpy()


def _summary_writer(folder: Path, first_epoch: int) -> Any:
    tensorboard = require("torch.utils.tensorboard", "training", "train", package="tensorboard")
    return tensorboard.SummaryWriter(str(folder), purge_step=first_epoch)
