"""The search for a learning rate: what it suggests, that it repeats, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from trt_cls.cli import main
from trt_cls.spec import show
from trt_cls.spec.experiment import NO_EXTENSIONS, CosineLr, Experiment, LrConfig
from trt_cls.training.learner import EpochMeans
from trt_cls.training.rate_finder import RateCurve, sweep
from trt_cls.training.run import find_rate

Make = Callable[..., Experiment]


class Played:
    """A learner whose loss is a function of the rate."""

    def __init__(self, loss: Callable[[float], float]) -> None:
        self._loss, self.rates = loss, list[float]()

    def start_epoch(self) -> None:
        pass

    def step(self, batch: object, number: int, rate: float, *, ends_group: bool) -> None:
        assert number == len(self.rates)
        self.rates.append(rate)

    def metrics_of_all(self) -> EpochMeans:
        return EpochMeans(self._loss(self.rates[-1]), 0.5, 8)


def played(loss: Callable[[float], float], processes: int = 1, group: int = 1) -> tuple[RateCurve, Played]:
    learner: Any = Played(loss)
    setup: Any = SimpleNamespace(
        config=SimpleNamespace(lr_config=LrConfig(cosine=CosineLr(learning_rate=0.1))),
        extensions=replace(NO_EXTENSIONS, accumulate_steps=group),
        processes=SimpleNamespace(size=processes),
        loader=SimpleNamespace(epoch=lambda number: []),
        compute=None,
        kernel=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_cls.training.rate_finder.prefetched", lambda *_: [None] * 3)
        return sweep(learner, setup), learner


def valley(rate: float) -> float:
    """Lowest at 0.3; it diverges above 1."""
    return 2 + abs(math.log10(rate / 0.3)) / 5 if rate < 1 else 100 * rate


def test_it_suggests_a_tenth_of_the_rate_with_the_lowest_loss_and_stops_where_it_diverges() -> None:
    curve, learner = played(valley)
    # the running mean lags by some steps, of which 14 are a power of ten
    assert curve.suggested is not None
    assert 0.03 <= curve.suggested <= 0.1
    assert curve.field == "train_config.lr_config.cosine.learning_rate"
    assert learner.rates[0] == pytest.approx(1e-6)
    assert 1 < learner.rates[-1] < 5
    halves, _ = played(valley, processes=2)
    assert halves.suggested == pytest.approx(curve.suggested / 2, rel=0.05)


def test_all_batches_of_a_group_have_one_rate() -> None:
    _, learner = played(valley, group=2)
    assert learner.rates[::2] == learner.rates[1::2]


@pytest.mark.parametrize("loss", [lambda rate: 2.3, lambda rate: 2 + rate, lambda rate: math.nan])
def test_a_loss_that_never_falls_gives_no_suggestion(loss: Any) -> None:
    assert played(loss)[0].suggested is None


@pytest.fixture(scope="module")
def searched(experiment: Make, quiet: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[RateCurve, Path]:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_cls.training.rate_finder.STEPS", 12)
        return find_rate(experiment(), folder, device="cpu", reporter=quiet()), folder


def test_a_search_repeats_for_any_number_of_workers_and_leaves_the_page_alone(
    searched: tuple[RateCurve, Path], experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, folder = searched
    assert [path.name for path in folder.iterdir()] == ["training.html"]
    monkeypatch.setattr("trt_cls.training.rate_finder.STEPS", 12)
    assert len(curve.rates) > 4
    assert find_rate(experiment(n_workers=1), tmp_path, device="cpu", reporter=quiet()) == curve
    other = find_rate(experiment(random_seed=8), tmp_path, device="cpu", reporter=quiet())
    assert other.losses != curve.losses


def test_the_page_draws_the_curve(searched: tuple[RateCurve, Path]) -> None:
    curve, folder = searched
    html = (folder / "training.html").read_text()
    assert html.count("<circle") == 2 * len(curve.rates)
    assert f"{curve.rates[0]:.2g}: {curve.losses[0]:.4g}" in html
    assert "The network is not kept" in html


def test_the_command_prints_the_next_one_and_takes_no_flag_of_a_training(
    experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, results = tmp_path / "spec.txt", tmp_path / "run"
    spec.write_text(show(experiment()))
    curve = played(valley)[0]
    # with its signature: the command passes on the flags that a training has, too
    searching = create_autospec(find_rate, return_value=curve)
    monkeypatch.setattr("trt_cls.training.run.find_rate", searching)
    asked = ["train", "-e", str(spec), "-r", str(results), "--find-lr", "--set", "train_config.n_epochs=3"]
    assert main(asked) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        f"--set train_config.n_epochs=3 --set train_config.lr_config.cosine.learning_rate={curve.suggested:g}"
    )
    assert "--find-lr" not in last
    assert main([*asked, "--resume", "--logger", "wandb"]) == 2
    assert "--find-lr with --resume and --logger; expected one of the two" in capsys.readouterr().err
    searching.return_value = played(lambda rate: 2.3)[0]
    assert main(asked) == 1
    assert "error: --find-lr: the loss falls at no learning rate" in capsys.readouterr().err
