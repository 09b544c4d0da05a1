"""A loss that is no number ends the training, whatever its epoch: no such network is the best, or a state."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trt_cls.errors import TrtClsError
from trt_cls.spec.experiment import CosineLr, Experiment, Extensions, LrConfig
from trt_cls.training import loop
from trt_cls.training.run import train
from trt_cls.training.validation import Validation

Make = Callable[..., Experiment]


def found(loss: float, right: int) -> Validation:
    """Of three classes with two images each, of which so many are right."""
    return Validation(loss, np.array([[right] * 3, [2] * 3, [2] * 3]))


def test_a_validation_loss_that_is_no_number_is_not_the_best(
    experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy of such a network is that of class 0, which may be the largest."""
    losses = iter([0.9, math.nan])
    monkeypatch.setattr(loop, "validate", lambda *_: found(loss := next(losses), right=1 if loss == 0.9 else 2))
    with pytest.raises(TrtClsError, match=r"^epoch 2: the validation loss is nan; .*learning_rate.*best") as failure:
        train(experiment(n_epochs=3), tmp_path, device="cpu", reporter=quiet())
    assert failure.value.exit_code == 1
    weights = tmp_path / "weights"
    assert {path.name for path in weights.iterdir()} == {"best.safetensors", "resnet_001.safetensors"}
    assert (weights / "best.safetensors").read_bytes() == (weights / "resnet_001.safetensors").read_bytes()
    monkeypatch.undo()
    train(experiment(n_epochs=3), tmp_path, device="cpu", reporter=quiet(), resume=True)
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_epoch_counts_too(
    value: float, experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate", lambda *_: found(value, right=2))
    with pytest.raises(TrtClsError, match=f"epoch 1: the validation loss is {value}"):
        train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=quiet())
    assert not list((tmp_path / "weights").iterdir())


def test_a_mean_of_checkpoints_is_no_exception(
    experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.9, 0.8, math.nan])
    monkeypatch.setattr(loop, "validate", lambda *_: found(next(losses), right=1))
    request = experiment(extensions=Extensions(average_checkpoints=2))
    with pytest.raises(TrtClsError, match="the validation loss is nan"):
        train(request, tmp_path, device="cpu", reporter=quiet())
    assert not (tmp_path / "weights/averaged.safetensors").exists()


def test_no_state_is_saved_once_the_loss_is_no_number(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    wild = experiment(lr_config=LrConfig(cosine=CosineLr(learning_rate=1e30)))
    for resume in (False, True):
        with pytest.raises(TrtClsError, match=r"^epoch 1: the training loss is (nan|inf)"):
            train(wild, tmp_path, device="cpu", reporter=quiet(), save_every=1, resume=resume)
        state = torch.load(tmp_path / "train_state.pt", weights_only=True)
        assert all(math.isfinite(value) for sums in state["learner"]["sums"] for value in sums)
