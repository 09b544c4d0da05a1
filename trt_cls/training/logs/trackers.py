"""Curves, configuration and final files for TensorBoard, Weights & Biases and MLflow, through their own libraries.

The id of a run is kept in the results folder, so that a resumed training continues the same run. Where runs are sent,
and whether at all, is set as the libraries document it: WANDB_MODE, MLFLOW_TRACKING_URI and so on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from trt_cls.contract import Preprocessing
from trt_cls.data.loader import TrainingBatch
from trt_cls.errors import RequestError, TrtClsError, one_line, require
from trt_cls.files import write_text
from trt_cls.preprocessing.pillow import pixels_from_input
from trt_cls.spec.experiment import Experiment, Visualizer, WandbConfig
from trt_cls.training.logs import EpochRow, Log
from trt_cls.training.logs.console import Reporter
from trt_cls.training.logs.files import TEXT_SIZE
from trt_cls.training.run_folder import RunFolder
from trt_cls.training.state import fields_by_path, room_to_save

PROJECT = "trt-cls"
"""The project, or MLflow's experiment, where neither spec nor environment names one."""
MAY_HOLD_A_KEY = "train_config.visualizer"
"""Not sent to trackers."""


class TensorBoard(Log):
    """TensorBoard's event files; events of `first_epoch` and later ones of an earlier run are superseded."""

    def __init__(self, folder: Path, visualizer: Visualizer, preprocessing: Preprocessing, first_epoch: int) -> None:
        tensorboard = require("torch.utils.tensorboard", "training", "train", package="tensorboard")
        self._folder, self._visualizer, self._preprocessing = folder, visualizer, preprocessing
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=first_epoch)

    def first_batch(self, epoch: int, batch: TrainingBatch) -> None:
        """Adds its first images, as the network sees them."""
        if self._visualizer.enabled and self._visualizer.num_images:
            images = batch.images[: self._visualizer.num_images].cpu().numpy()
            shown = pixels_from_input(images, self._preprocessing)
            self._writer.add_images("training images", shown, epoch, dataformats="NHWC")

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        epoch = rows[-1].epoch
        with room_to_save(self._folder, TEXT_SIZE):
            for name, value in _values(rows[-1]).items():
                self._writer.add_scalar(name, value, epoch)
            if self._visualizer.enabled and self._visualizer.weight_histograms:
                for name, parameter in model.named_parameters():
                    self._writer.add_histogram(name, parameter.detach().cpu(), epoch)
            self._writer.flush()

    def failed(self, error: BaseException) -> None:
        """See `Log.failed`."""
        with suppress(OSError, TrtClsError):
            self._writer.close()

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """See `Log.done`."""
        self._writer.close()


class Trackers(Log):
    """The trackers that were asked for by name. A tracker that fails is reported and dropped.

    Raises:
        MissingDependency: a library is not installed.
        TrtClsError: a run can't be started.
    """

    def __init__(self, names: Sequence[str], experiment: Experiment, folder: RunFolder, reporter: Reporter) -> None:
        self._folder, self._reporter = folder, reporter
        self._runs: dict[str, Wandb | Mlflow] = {}
        ids = folder.root / "loggers.json"
        known, fields = _known(ids), fields_by_path(experiment)
        fields = {name: value for name, value in fields.items() if not name.startswith(MAY_HOLD_A_KEY)}
        asked = experiment.train_config.visualizer.wandb_config if experiment.train_config else None
        for name in dict.fromkeys([*names, *(["wandb"] if asked and asked.enabled else [])]):
            run_id = known.get(name)
            try:
                self._runs[name] = (
                    Wandb(folder.root, fields, run_id, asked) if name == "wandb" else Mlflow(fields, run_id)
                )
            except TrtClsError:
                raise
            except Exception as error:  # these libraries raise anything
                raise TrtClsError(
                    f"--logger {name}: no run could be started ({one_line(error)}); expected its server or an offline "
                    "mode; set its environment variables, or train without it"
                ) from error
        if self._runs:
            write_text(ids, json.dumps(known | {name: run.run_id for name, run in self._runs.items()}) + "\n")

    def epoch_done(self, rows: Sequence[EpochRow], model: nn.Module, *, best: bool, seconds: float) -> None:
        """See `Log.epoch_done`."""
        self._each(lambda run: run.epoch(rows[-1].epoch, _values(rows[-1])))

    def failed(self, error: BaseException) -> None:
        """See `Log.failed`."""
        self._each(lambda run: run.end((), success=False))

    def done(self, rows: Sequence[EpochRow], best: EpochRow, ended: str) -> None:
        """See `Log.done`."""
        offered = self._folder.curve, self._folder.classmap, self._folder.best, self._folder.averaged
        self._each(lambda run: run.end([path for path in offered if path.exists()], success=True))

    def _each(self, act: Callable[[Wandb | Mlflow], None]) -> None:
        for name, run in list(self._runs.items()):
            try:
                act(run)
            except Exception as error:
                self._reporter.line(f"--logger {name}: {one_line(error)}; the training continues without it")
                del self._runs[name]


class Wandb:
    """A run of Weights & Biases, with the options of `config`."""

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
        """Adds the points of an epoch."""
        self._run.log(dict(values), step=number)

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """Uploads `files` and ends the run."""
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
        """Adds the points of an epoch."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=number)

    def end(self, files: Sequence[Path], *, success: bool) -> None:
        """Uploads `files` and ends the run."""
        for path in files:
            self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, "FINISHED" if success else "FAILED")


def _known(path: Path) -> dict[str, str]:
    """The ids of the runs of an earlier part of the training, by tracker."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(content, dict) or not all(isinstance(run, str) for run in content.values()):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{path}: can't be read; expected the ids of runs by tracker, as a training writes them; remove it to "
            "begin new runs"
        ) from error
    return content


def _values(row: EpochRow) -> dict[str, float]:
    return {name: value for name, value in row.figures.items() if name != "epoch"}
