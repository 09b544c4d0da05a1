"""Temperature scaling on logits whose temperature is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import calibration_error
from trt_cls.evaluation.temperature import fitted_temperature, logits_of, softened

Array = NDArray[np.float64]


def answers(temperature: float, images: int) -> tuple[Array, NDArray[np.int64]]:
    """Logits that are `temperature` times those that the labels were drawn from."""
    random = np.random.default_rng(3)
    true = random.normal(scale=2, size=(images, 5))
    return temperature * true, (true + random.gumbel(size=true.shape)).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_of_synthetic_logits_is_recovered(temperature: float) -> None:
    """With each class as often as it is likely: every image once per class, in proportion to its probability."""
    true = np.random.default_rng(0).normal(scale=2, size=(60, 3))
    shares = softened(np.exp(true - true.max(axis=1, keepdims=True)).astype(np.float32), 1.0)
    counts = np.round(shares * 2000).astype(int)
    logits, labels = (
        np.repeat(temperature * true, counts.sum(axis=1), axis=0),
        np.concatenate([np.repeat(np.arange(3), row) for row in counts]),
    )
    assert fitted_temperature(logits, labels) == pytest.approx(temperature, rel=1e-3)


def test_it_is_the_minimum_that_scipy_finds_and_the_calibration_error_falls() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, labels = answers(2.0, 4000)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(4000), labels]).mean())

    found = fitted_temperature(logits[:2000], labels[:2000])
    whole = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-10}).x
    assert fitted_temperature(logits, labels) == pytest.approx(whole, rel=1e-6)
    given = softened(np.exp(logits[2000:] - logits[2000:].max(axis=1, keepdims=True)).astype(np.float32), 1.0)
    before, after = (calibration_error(p, labels[2000:]) for p in (given, softened(given, found)))
    assert after < before / 2


def test_softened_answers_are_scipys_softmax_and_come_back() -> None:
    special = pytest.importorskip("scipy.special")
    logits, _ = answers(3.0, 50)
    given = special.softmax(logits, axis=1).astype(np.float32)
    np.testing.assert_allclose(softened(given, 2.0), special.softmax(logits / 2, axis=1), atol=1e-6)
    np.testing.assert_allclose(softened(softened(given, 2.0), 0.5), given, atol=1e-6)
    np.testing.assert_allclose(logits_of(np.array([[0.0, 1.0]], np.float32)), [[np.log(2.0**-126), 0]])


@pytest.mark.parametrize(("label", "reason"), [(0, "too few images are wrong"), (1, "little to do with the labels")])
def test_answers_without_a_temperature_are_refused(label: int, reason: str) -> None:
    logits = np.array([[3.0, 0.0, 0.0]] * 4)
    with pytest.raises(DataError, match=rf"not between 0\.05 and 20: .*{reason}"):
        fitted_temperature(logits, np.full(4, label))
