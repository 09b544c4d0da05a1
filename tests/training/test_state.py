"""train_state.pt is a stranger's file: what is no state of this training is refused in one line that names it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trt_cls.errors import ArtefactError, RequestError
from trt_cls.spec.experiment import Experiment
from trt_cls.training.logs.files import StatusFile
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted, fields_by_path, read_state, refuse_other_request

Make = Callable[..., Experiment]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    """A training that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(experiment(), folder, device="cpu", reporter=quiet(2, 1, partial(signal.raise_signal, signal.SIGTERM)))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.update(format="2"),
        lambda state: state.update(epoch=-5),
        lambda state: state.update(epoch=10**12),
        lambda state: state.update(epoch=True),
        lambda state: state.update(step="1"),
        lambda state: state.update(request=["a list"]),
        lambda state: state.update(request="[" * 100_000),
        lambda state: state.update(request="{}"),
        lambda state: state.update(rows=[[1, "x", 1.0, 1.0, 1.0, 1.0]]),
        lambda state: state.update(rows=[[1, float("nan"), 1.0, 1.0, 1.0, 1.0]]),
        lambda state: state.update(rows=[[1, 1.0]]),
        lambda state: state.update(broken_val={"a": 1}),
        lambda state: state.pop("learner"),
        lambda state: state["learner"].pop("optimizer"),
        lambda state: state["learner"].update(model={"a": 1}),
    ],
)  # fmt: skip
def test_a_part_that_can_not_be_is_refused(change: Change, stopped: Path, tmp_path: Path) -> None:
    content = torch.load(stopped / "train_state.pt", weights_only=True)
    change(content)
    path = tmp_path / "train_state.pt"
    torch.save(content, path)
    with pytest.raises(ArtefactError) as refusal:
        read_state(path)
    assert str(refusal.value).startswith(f"{path}: can't be read (")
    assert "\n" not in str(refusal.value)


def test_a_state_of_a_version_without_a_field_is_one_with_the_field_off(experiment: Make) -> None:
    asked = fields_by_path(experiment())
    older = {name: value for name, value in asked.items() if name != "extensions.balanced_sampling"}
    refuse_other_request(older, asked, Path())
    with pytest.raises(RequestError, match=r"extensions\.balanced_sampling: False ≠ True"):
        refuse_other_request(older, asked | {"extensions.balanced_sampling": True}, Path())


def test_neither_state_nor_status_holds_the_secrets_of_urls(experiment: Make, tmp_path: Path) -> None:
    url = "https://u:secret@host/x.safetensors?signature=secret"
    asked = fields_by_path(experiment(pretrained_model_path=url))
    assert asked["train_config.pretrained_model_path"] == "https://host/x.safetensors"
    StatusFile(tmp_path / "status.json", 1, 1).failed(RequestError(f"{url}: no such file"))
    status = (tmp_path / "status.json").read_text()
    assert "https://host/x.safetensors: no such file" in status
    assert "secret" not in status


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_a_torn_state_is_refused(size: int, stopped: Path, tmp_path: Path) -> None:
    path = tmp_path / "train_state.pt"
    path.write_bytes((stopped / "train_state.pt").read_bytes()[:size])
    with pytest.raises(ArtefactError, match=r"train_state\.pt: can't be read \("):
        read_state(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(step=1000),
        lambda state: state.update(broken_train={"../../etc/passwd": "no image"}),
        lambda state: state["learner"].update(sums=[]),
        lambda state: state["learner"].update(optimizer={"state": 3, "param_groups": [{}]}),
        lambda state: state["learner"].update(group={"images": 1, "gradients": {"no.layer": 1}}),
        lambda state: state["learner"]["model"].pop("conv1.weight"),
        lambda state: state["learner"]["model"].update({"conv1.weight": torch.zeros(())}),
        lambda state: state["learner"]["model"].update({"conv1.weight": torch.zeros(3, 3, 7, 7)}),
    ],
)  # fmt: skip
def test_the_state_of_something_else_is_refused(
    change: Change, stopped: Path, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train_state.pt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ArtefactError, match=r"train_state\.pt: can't be read \(") as refusal:
        train(experiment(), tmp_path, device="cpu", reporter=quiet(), resume=True)
    assert "\n" not in str(refusal.value)
