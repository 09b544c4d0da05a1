"""Temperature scaling (Guo et al. 2017): one number that the logits are divided by, so that confidence equals accuracy.

Logarithms of probabilities serve as logits: a constant per image has no effect in a softmax. Does not know: files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import COLDEST, HOTTEST, Task
from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import Labels, Probabilities
from trt_cls.evaluation.multi_label import Flags

Logits = NDArray[np.float64]
HALVINGS = 40
"""Of the interval of ln(temperature): 5e-12 of it is left."""


def logits_of(probabilities: Probabilities, task: Task = "single") -> Logits:
    """Logits that give `probabilities`, of which 0 counts as the smallest of float32.

    Of the task "multi", those of the sigmoid; 1 counts as the largest number of float32 below it.
    """
    found: Logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny), dtype=np.float64)
    if task == "multi":
        found -= np.log1p(-np.minimum(probabilities.astype(np.float64), 1 - np.finfo(np.float32).epsneg))
    return found


def softened(probabilities: Probabilities, temperature: float, task: Task = "single") -> Probabilities:
    """What the softmax, or the sigmoid, gives for the logits divided by `temperature`."""
    if task == "multi":
        each: Probabilities = _sigmoid(logits_of(probabilities, task) / temperature).astype(np.float32)
        return each
    scaled = logits_of(probabilities) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def softened_thresholds(thresholds: Sequence[float], temperature: float) -> tuple[float, ...]:
    """The thresholds that give an image the same labels once its logits are divided by `temperature`."""
    logits = [math.log(value / (1 - value)) if 0 < value < 1 else (value - 0.5) * math.inf for value in thresholds]
    return tuple(_sigmoid(np.array(logits) / temperature).tolist())


def _sigmoid(logits: Logits) -> Logits:
    # e^-|z| can't overflow
    powers = np.exp(-np.abs(logits))
    found: Logits = np.where(logits >= 0, 1, powers) / (1 + powers)
    return found


def fitted_temperature_of_labels(logits: Logits, truth: Flags) -> float:
    """The temperature with the smallest mean binary cross-entropy; convex in 1 / temperature as below.

    Raises:
        DataError: the temperature is not between COLDEST and HOTTEST.
    """

    def slope(temperature: float) -> float:
        return float(((_sigmoid(logits / temperature) - truth) * logits).mean())

    return _zero_of(slope, len(truth))


def fitted_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the smallest mean -ln(probability of the label).

    That is convex in 1 / temperature, so its slope, which is known, has one zero, and halving finds it.

    Raises:
        DataError: the temperature is not between COLDEST and HOTTEST.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    of_label = shifted[np.arange(len(labels)), labels].mean()

    def slope(temperature: float) -> float:
        """Of the loss, in 1 / temperature."""
        powers = np.exp(shifted / temperature)
        return float(((powers * shifted).sum(axis=1) / powers.sum(axis=1)).mean() - of_label)

    return _zero_of(slope, len(labels))


def _zero_of(slope: Callable[[float], float], images: int) -> float:
    """The temperature at which `slope`, of the loss in 1 / temperature, is 0."""
    if not slope(HOTTEST) < 0 < slope(COLDEST):
        found = "too few images are wrong" if slope(COLDEST) <= 0 else "the answers have little to do with the labels"
        raise DataError(
            f"the best temperature on {images} images is not between {COLDEST:g} and {HOTTEST:g}: {found}; "
            "expected images that the network did not learn from, some of which it gets wrong; name more of them"
        )
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)
