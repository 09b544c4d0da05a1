"""--logger: through a stand-in for the library, and through the libraries themselves where they are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trt_cls.errors import MissingDependency, TrtClsError
from trt_cls.spec.experiment import Experiment, Extensions, Visualizer, WandbConfig
from trt_cls.training.run import train

Make = Callable[..., Experiment]


class StandIn(ModuleType):
    """A wandb that notes what it is called with, and fails in the epoch `failing`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.reported: list[tuple[str, Any]] = []
        self.failing = 0

    def login(self, key: str) -> None:
        self.reported.append(("login", key))

    def init(self, **options: Any) -> Any:
        self.reported.append(("init", options))
        return SimpleNamespace(id="run7", log=self.log, save=self.save, finish=self.finish)

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.failing:
            raise ConnectionError("the server\nis gone")
        self.reported.append(("log", (step, values)))

    def save(self, path: str, **_: Any) -> None:
        self.reported.append(("save", Path(path).name))

    def finish(self, exit_code: int) -> None:
        self.reported.append(("finish", exit_code))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.reported if name == kind]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stand_in


def test_curves_configuration_and_files_are_sent(wandb: StandIn, experiment: Make, quiet: Any, tmp_path: Path) -> None:
    asked = experiment(extensions=Extensions(average_checkpoints=1))
    result = train(asked, tmp_path, device="cpu", loggers=["wandb"], reporter=quiet())
    [options] = wandb.of("init")
    assert options["config"]["train_config.batch_size_per_gpu"] == 8
    assert options["project"] == "trt-cls"
    assert [(step, values["val_loss"]) for step, values in wandb.of("log")] == [
        (row.epoch, row.val_loss) for row in result.rows
    ]
    assert wandb.of("save") == ["training.csv", "classmap.json", "best.safetensors", "averaged.safetensors"]
    assert wandb.of("finish") == [0]


def test_the_specs_wandb_config_asks_for_it_too(wandb: StandIn, experiment: Make, quiet: Any, tmp_path: Path) -> None:
    config = WandbConfig(enabled=True, key="secret", project="mine", name="first", tags=("a",), mode="OFFLINE")
    asked = experiment(n_epochs=1, visualizer=Visualizer(wandb_config=config))
    train(asked, tmp_path, device="cpu", loggers=["wandb"], reporter=quiet())
    [options] = wandb.of("init")
    assert wandb.of("login") == ["secret"]
    assert "secret" not in str(options)
    assert {name: options[name] for name in ("project", "name", "tags", "mode")} == {
        "project": "mine", "name": "first", "tags": ["a"], "mode": "offline",
    }  # fmt: skip


def test_a_resumed_training_goes_on_with_its_run(wandb: StandIn, experiment: Make, quiet: Any, tmp_path: Path) -> None:
    def fail() -> None:
        raise TrtClsError("stopped by the test")

    with pytest.raises(TrtClsError, match="stopped by the test"):
        train(experiment(), tmp_path, device="cpu", loggers=["wandb"], reporter=quiet(2, 1, fail), save_every=1)
    train(experiment(), tmp_path, device="cpu", loggers=["wandb"], reporter=quiet(), resume=True)
    first, second = wandb.of("init")
    assert "id" not in first
    assert (second["id"], second["resume"]) == ("run7", "allow")
    assert wandb.of("finish") == [1, 0]
    assert [step for step, _ in wandb.of("log")] == [1, 2]


def test_a_logger_that_fails_does_not_end_the_training(
    wandb: StandIn, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    wandb.failing = 1
    reporter = quiet()
    result = train(experiment(), tmp_path, device="cpu", loggers=["wandb"], reporter=reporter)
    assert len(result.rows) == 2
    assert "--logger wandb: the server is gone; the training continues without it" in reporter.lines
    assert not wandb.of("log")


def test_a_run_that_can_not_be_started_ends_the_training(
    wandb: StandIn, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("no key")

    wandb.init = refuse  # type: ignore[method-assign]
    with pytest.raises(TrtClsError, match=r"--logger wandb: no run could be started \(no key\)"):
        train(experiment(), tmp_path, device="cpu", loggers=["wandb"], reporter=quiet())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_named(
    name: str, experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=f"--logger {name} needs the package {name}"):
        train(experiment(), tmp_path, device="cpu", loggers=[name], reporter=quiet())


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_writes_offline(
    experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(experiment(), tmp_path, device="cpu", loggers=["wandb"], reporter=quiet())
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [log] = run.glob("*.wandb")
    content = log.read_bytes()
    assert b"val_acc" in content
    assert b"train_config.batch_size_per_gpu" in content
    assert (run / "files/training.csv").read_bytes() == (tmp_path / "training.csv").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself_keeps_curves_parameters_and_files(
    experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "colors")
    rows = train(experiment(), tmp_path / "run", device="cpu", loggers=["mlflow"], reporter=quiet()).rows
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("colors").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train_config.batch_size_per_gpu"] == "8"
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(row.epoch, row.val_loss) for row in rows]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"training.csv", "classmap.json", "best.safetensors"}
