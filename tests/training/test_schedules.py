"""Learning rates: NVIDIA's figures where its code does what is documented, values worked out by hand elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from support.shared_data import tao_json
from trt_cls.spec.experiment import CosineLr, LrConfig, SoftAnnealLr, StepLr
from trt_cls.training.optimization import Schedule, schedule

KINDS = {"step": StepLr, "soft_anneal": SoftAnnealLr, "cosine": CosineLr}


def configured(kind: str, world_size: int = 1, **values: Any) -> Schedule:
    return schedule(LrConfig(**{kind: KINDS[kind](**values)}), world_size)


def reference(name: str) -> tuple[Schedule, dict[str, Any]]:
    case = tao_json("lr_schedules.json")["cases"][name]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in case["config"].items()}
    return configured(case["scheduler"], case["hvd_size"], **given), case


@pytest.mark.parametrize("name", ["sa_default_spec", "sa_soft_start_0", "sa_no_points_hvd2", "cos_soft_start_0"])
def test_rates_are_nvidias_where_its_code_is_as_documented(name: str) -> None:
    rate, case = reference(name)
    assert [rate(progress) for progress in case["progress"]] == pytest.approx(case["lr"], rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("name", ["cos_0.05_0.002", "cos_soft_start_0.5", "sa_lr_below_start_lr"])
def test_rates_are_nvidias_in_the_part_that_is_as_documented(name: str) -> None:
    rate, case = reference(name)
    soft_start = case["config"]["soft_start"]
    for progress, expected in zip(case["progress"], case["lr"], strict=True):
        if (progress <= soft_start) == (case["scheduler"] == "cosine"):
            assert rate(progress) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["step_33_0.1_max3000", "step_25_0.9_hvd4"])
def test_staircase_meets_nvidias_curve_at_each_drop(name: str) -> None:
    rate, case = reference(name)
    drop = case["max_iterations"] * case["step_size"] // 100
    drops = [
        (p, lr)
        for p, lr, step in zip(case["progress"], case["lr"], case["global_step"], strict=True)
        if step % drop == 0
    ]
    assert len(drops) >= 4
    for progress, expected in drops:
        assert rate(progress) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 1.0), (0.3299, 1.0), (0.33, 0.1), (0.6599, 0.1), (0.66, 0.01), (0.99, 0.001), (1, 0.001)],
)
def test_step_is_a_staircase(progress: float, expected: float) -> None:
    assert configured("step", learning_rate=1.0, step_size=33, gamma=0.1)(progress) == pytest.approx(expected)


@pytest.mark.parametrize("percent", range(1, 100))
def test_step_drops_at_the_step_itself_whatever_its_rounding(percent: int) -> None:
    rate = configured("step", learning_rate=1.0, step_size=percent, gamma=0.5)
    steps = 1000
    assert rate((10 * percent - 1) / steps) == 1.0
    assert rate(10 * percent / steps) == 0.5


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.01), (0.25, 0.055), (0.5, 0.1), (0.75, 0.055), (5 / 6, 0.0325), (1, 0.01)]
)
def test_cosine_reaches_the_lowest_rate_after_a_warm_up(progress: float, expected: float) -> None:
    rate = configured("cosine", learning_rate=0.1, min_lr_ratio=0.1, soft_start=0.5)
    assert rate(progress) == pytest.approx(expected)


def test_soft_anneal_does_not_warm_up_from_above() -> None:
    rate = configured("soft_anneal", learning_rate=1e-4, soft_start=0.2)
    assert [rate(0), rate(0.1), rate(0.5)] == pytest.approx([1e-4] * 3)


@pytest.mark.parametrize(("progress", "expected"), [(0.5, 0.1), (0.501, 0.025), (0.75, 0.025), (0.76, 0.00625)])
def test_soft_anneal_divides_after_each_point(progress: float, expected: float) -> None:
    rate = configured("soft_anneal", learning_rate=0.1, annealing_divider=4, annealing_points=(0.5, 0.75))
    assert rate(progress) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_rate_grows_with_the_number_of_gpus(kind: str) -> None:
    values = {"step_size": 50, "gamma": 0.5} if kind == "step" else {"min_lr_ratio": 0.2}
    one, four = configured(kind, learning_rate=0.1, **values), configured(kind, 4, learning_rate=0.1, **values)
    assert [four(p / 10) for p in range(11)] == pytest.approx([4 * one(p / 10) for p in range(11)])
