"""Temperature scaling (Guo et al. 2017): one number that the logits are divided by, so that probabilities are honest.

Logarithms of probabilities do for logits: a constant per image has no effect in a softmax. Does not know: files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import COLDEST, HOTTEST
from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import Labels, Probabilities

Logits = NDArray[np.float64]
HALVINGS = 40
"""Of the interval of ln(temperature): 5e-12 of it is left."""


def logits_of(probabilities: Probabilities) -> Logits:
    """Logits that give `probabilities`, of which 0 counts as the smallest of float32."""
    found: Logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny), dtype=np.float64)
    return found


def softened(probabilities: Probabilities, temperature: float) -> Probabilities:
    """What the softmax gives for the logits divided by `temperature`."""
    scaled = logits_of(probabilities) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


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

    if not slope(HOTTEST) < 0 < slope(COLDEST):
        found = "too few images are wrong" if slope(COLDEST) <= 0 else "the answers have little to do with the labels"
        raise DataError(
            f"the best temperature on {len(labels)} images is not between {COLDEST:g} and {HOTTEST:g}: {found}; "
            "expected images that the network did not learn from, some of which it gets wrong; name more of them"
        )
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)
