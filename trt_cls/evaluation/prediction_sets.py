"""What a model says about an image: one class, a set of classes, or that it does not know.

The rules stand in the contract; `conformal_of` and `reject_of` measure them on validation images. `probabilities` is
float32 [n, classes]. Does not know: images and files.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Conformal, Contract, Reject
from trt_cls.errors import DataError
from trt_cls.evaluation.metrics import Labels, Probabilities, top_k_indices
from trt_cls.evaluation.multi_label import labels_over

UNKNOWN = "unknown"
Kind = Literal["label", "set", "unknown"]
KINDS: tuple[Kind, ...] = ("unknown", "label", "set")
"""By the number of classes that are named, of which more than two count as two."""


class Decision(NamedTuple):
    """The answer to one image."""

    kind: Kind
    named: tuple[tuple[str, float], ...]
    """Classes with their probabilities, likeliest first; where it is unknown, UNKNOWN with the highest probability."""


def decides(contract: Contract) -> bool:
    """Whether the contract has a rule, without which the likeliest class is named always."""
    return bool(contract.conformal or contract.reject)


def calibration_rows(contract: Contract) -> list[tuple[str, str]]:
    """Temperature and rules, as a table; empty without."""
    rows = []
    if contract.temperature is not None:
        rows.append(("Temperature", f"{contract.temperature:.4g}"))
    if rule := contract.conformal:
        rows.append(("Coverage", f"{rule.coverage:g}, sets of classes from probability {1 - rule.quantile:.4g}"))
    if contract.reject:
        rows.append(("Reject rate", f"{contract.reject.rate:g}, unknown below {contract.reject.threshold:.4g}"))
    return rows


def decision(probabilities: NDArray[np.float32], contract: Contract) -> Decision:
    """About one image, probabilities [classes]; of a multi-label model, the set of labels that it has."""
    if contract.task == "multi":
        return Decision("set", labels_over(probabilities, contract))
    chosen = named(probabilities[None], contract)[0]
    kind = KINDS[min(int(chosen.sum()), 2)]
    if kind == "unknown":
        return Decision(kind, ((UNKNOWN, float(probabilities.max())),))
    order = top_k_indices(probabilities, int(chosen.sum()))
    return Decision(kind, tuple((contract.classes[index], float(probabilities[index])) for index in order))


def named(probabilities: Probabilities, contract: Contract) -> NDArray[np.bool_]:
    """The classes that are named [n, classes]: those of the set, else the likeliest; none of an unknown image."""
    if contract.conformal:
        chosen = in_sets(probabilities, contract.conformal)
    else:
        chosen = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    if contract.reject:
        chosen &= (probabilities.max(axis=1).astype(np.float64) >= contract.reject.threshold)[:, None]
    return chosen


def counts_of_kinds(probabilities: Probabilities, contract: Contract) -> dict[Kind, int]:
    """How many images get which decision."""
    sizes = np.minimum(named(probabilities, contract).sum(axis=1), 2)
    return {kind: int((sizes == size).sum()) for size, kind in enumerate(KINDS)}


def in_sets(probabilities: Probabilities, conformal: Conformal) -> NDArray[np.bool_]:
    """The classes of each image's set [n, classes]; a set may be empty."""
    return 1 - probabilities.astype(np.float64) <= conformal.quantile


def conformal_of(probabilities: Probabilities, labels: Labels, coverage: float) -> Conformal:
    """The rule under which a further image's set holds its true class with a probability of at least `coverage`.

    That holds where the image is drawn as these were (split conformal prediction: Vovk et al. 2005); where no two
    scores are equal, the probability is above `coverage` by at most 1 / (n + 1).

    Raises:
        DataError: there are too few images.
    """
    scores = 1 - probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Conformal(coverage, _quantile(scores, coverage, "--coverage"))


def reject_of(probabilities: Probabilities, rate: float) -> Reject:
    """The rule under which a further image drawn as these is unknown with a probability of at most `rate`.

    Raises:
        DataError: there are too few images.
    """
    doubts = -probabilities.max(axis=1).astype(np.float64)
    return Reject(rate, -_quantile(doubts, 1 - Fraction(str(rate)), "--reject-rate"))


def _quantile(scores: NDArray[np.float64], share: float | Fraction, flag: str) -> float:
    """The ceil(share · (n + 1))-th smallest of `scores` [n]; the share is taken as its decimals say."""
    exact = Fraction(str(share))
    rank, least = math.ceil(exact * (len(scores) + 1)), math.ceil(exact / (1 - exact))
    if rank > len(scores):
        raise DataError(
            f"{flag}: {len(scores)} validation images are left to measure on, every second one; expected at least "
            f"{least} of them; name more images, or ask for less"
        )
    return float(np.partition(scores, rank - 1)[rank - 1])


def auroc(probabilities: Probabilities, foreign: Probabilities) -> float:
    """The probability that an image's likeliest class has a higher probability than that of a foreign image.

    Equal ones count half: the area under the ROC curve of the highest probability (Hendrycks & Gimpel 2017).
    """
    own, others = np.sort(probabilities.max(axis=1)), foreign.max(axis=1)
    not_above, below = np.searchsorted(own, others, "right"), np.searchsorted(own, others, "left")
    wins = 2 * len(own) * len(others) - int(not_above.sum()) - int(below.sum())
    return wins / (2 * len(own) * len(others))
