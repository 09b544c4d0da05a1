"""Two models held against each other on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trt_cls.contract import Contract
from trt_cls.data.folder import Sample
from trt_cls.data.stream import Skipped, stream
from trt_cls.engines.engine import Engine
from trt_cls.errors import ArtefactError, DataError

BATCH = 32
WORKERS = 4


@dataclass(frozen=True)
class Change:
    """An image that the two models label differently."""

    path: Path
    label_a: str
    label_b: str


@dataclass(frozen=True)
class Comparison:
    """How far two models are apart."""

    images: int
    top1_agreement: float
    """Share of images with the same likeliest class, 0 to 1."""
    max_abs_difference: float
    """Largest difference of two probabilities."""
    p99: float
    """99 % of the images stay at or below this largest difference."""
    changed: tuple[Change, ...]
    skipped: tuple[Skipped, ...]


def compare(a: Engine, b: Engine, images: Sequence[Path]) -> Comparison:
    """The differences of `a` and `b` on `images`.

    Raises:
        ArtefactError: their contracts have other classes or preprocessing.
        DataError: no image can be decoded.
    """
    require_same_meaning(a.contract, b.contract)
    samples = [Sample(path) for path in images]
    changed: list[Change] = []
    skipped: list[Skipped] = []
    largest: list[float] = []
    for batch in stream(samples, a.contract.preprocessing, batch_size=BATCH, workers=WORKERS):
        skipped += batch.skipped
        if not batch.samples:
            continue
        of_a, of_b = a.infer(batch.images), b.infer(batch.images)
        largest += np.abs(of_a - of_b).max(axis=1).tolist()
        changed += [
            Change(sample.path, a.contract.classes[label_a], a.contract.classes[label_b])
            for sample, label_a, label_b in zip(batch.samples, of_a.argmax(axis=1), of_b.argmax(axis=1), strict=True)
            if label_a != label_b
        ]
    if not largest:
        raise DataError(f"none of {len(images)} images can be decoded; expected image files; name others with --images")
    return Comparison(
        images=len(largest),
        top1_agreement=1 - len(changed) / len(largest),
        max_abs_difference=float(np.max(largest)),
        p99=float(np.quantile(largest, 0.99, method="higher")),
        changed=tuple(changed),
        skipped=tuple(skipped),
    )


def require_same_meaning(a: Contract, b: Contract) -> None:
    """Refuses models whose answers can't be held against each other.

    Raises:
        ArtefactError: classes or preprocessing differ.
    """
    differences = a.differences(b)
    if differences:
        raise ArtefactError(
            f"the two models do not mean the same: {'; '.join(differences)} (the first model's value ≠ the second's); "
            "expected the same classes and preprocessing; compare files that were exported from one checkpoint"
        )
