"""Comparison of two models on the same images.

Does not know: in which layer a difference begins, see `layer_differences.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Contract
from trt_cls.data.folder import Sample, listed_images
from trt_cls.data.labels_csv import SEPARATOR
from trt_cls.data.samples import Samples
from trt_cls.data.shards import shard_samples
from trt_cls.data.split import Dataset
from trt_cls.data.stream import WORKERS, Batch, Skipped, stream
from trt_cls.engines.engine import Engine, infer_fed
from trt_cls.errors import ArtefactError
from trt_cls.evaluation.inference import nothing_decoded
from trt_cls.evaluation.metrics import Probabilities, mcnemar, top_k_indices
from trt_cls.evaluation.multi_label import Flags, given_labels, truth_of
from trt_cls.files import is_shards
from trt_cls.preprocessing.image_file import Source
from trt_cls.preprocessing.pillow import Floats
from trt_cls.text import lookalikes

BATCH_SIZE = 32
TOP_K = 5


@dataclass(frozen=True)
class Change:
    """An image with different labels from the two models, and their confidence.

    Of multi-label models, labels are joined by "|", and the confidence is that of the label in dispute on which the
    probabilities differ most.
    """

    path: Path
    label_a: str
    label_b: str
    confidence_a: float
    confidence_b: float
    truth: str | None
    """The true class; None: unknown."""
    source: Source = b""
    """What the image is read from, for a picture of it."""


@dataclass(frozen=True)
class Verdict:
    """Which of two models is better on labeled images."""

    images: int
    right_a: int
    right_b: int
    only_a_right: int
    only_b_right: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely two equally good models differ by this or more."""
        return mcnemar(self.only_a_right, self.only_b_right)


@dataclass(frozen=True)
class Comparison:
    """How far the predictions of two models differ."""

    images: int
    top1_agreement: float
    """Share of images with the same top-1 class, or of multi-label models with the same labels, 0 to 1."""
    top_k: int
    """5, or the number of classes if that is less."""
    top_k_agreement: float
    """Share of images with the same top-k classes, in any order."""
    max_abs_difference: float
    """Largest difference of two probabilities."""
    p99: float
    """The 99th percentile of the images' largest differences."""
    changed: tuple[Change, ...]
    skipped: tuple[Skipped, ...]
    verdict: Verdict | None
    """None: the images have no labels, or each label has a verdict of its own."""
    verdicts: Mapping[str, Verdict] | None = None
    """Of multi-label models, for each label; empty: the images have no labels. None: one class per image."""


class _Answers(NamedTuple):
    """The probabilities of both models for a batch."""

    samples: tuple[Sample, ...]
    a: Probabilities
    b: Probabilities
    skipped: tuple[Skipped, ...]


def compare(a: Engine, b: Engine, samples: Sequence[Sample], *, own_preprocessing: bool = False) -> Comparison:
    """The differences of `a` and `b` on `samples`, all of them labeled or none.

    With `own_preprocessing` the images are preprocessed by each model's own contract.

    Raises:
        ArtefactError: their contracts have other classes, or other preprocessing without `own_preprocessing`.
        DataError: no image can be decoded.
    """
    require_same_meaning(a.contract, b.contract, own_preprocessing=own_preprocessing)
    answer = _each_by_its_contract if a.contract.differences(b.contract) else _to_one_input
    batches = [batch for batch in answer(a, b, samples) if batch.samples or batch.skipped]
    answered = [sample for batch in batches for sample in batch.samples]
    skipped = [image for batch in batches for image in batch.skipped]
    if not answered:
        raise nothing_decoded(skipped, "name others with --images")
    of_a, of_b = np.concatenate([batch.a for batch in batches]), np.concatenate([batch.b for batch in batches])
    if a.contract.task == "multi":
        return _label_comparison(a.contract, b.contract, answered, of_a, of_b, skipped)
    return _comparison(a.contract.classes, answered, of_a, of_b, skipped)


def _to_one_input(a: Engine, b: Engine, samples: Sequence[Sample]) -> Iterator[_Answers]:
    # If one of the models normalizes pixels itself, both begin with pixels.
    fed = max(a.contract.preprocessing, b.contract.preprocessing, key=lambda described: described.embedded)
    infer_a, infer_b = infer_fed(a, fed), infer_fed(b, fed)
    for batch in stream(samples, fed, batch_size=BATCH_SIZE, workers=WORKERS):
        yield _Answers(batch.samples, _asked(a, infer_a, batch), _asked(b, infer_b, batch), batch.skipped)


def _each_by_its_contract(a: Engine, b: Engine, samples: Sequence[Sample]) -> Iterator[_Answers]:
    """An image that one of the two refuses is skipped for both."""
    streams = [
        stream(samples, engine.contract.preprocessing, batch_size=BATCH_SIZE, workers=WORKERS) for engine in (a, b)
    ]
    for of_a, of_b in zip(*streams, strict=True):
        skipped = {image.path: image for image in (*of_a.skipped, *of_b.skipped)}
        kept_a, kept_b = (
            [row for row, sample in enumerate(batch.samples) if sample.path not in skipped] for batch in (of_a, of_b)
        )
        yield _Answers(
            tuple(of_a.samples[row] for row in kept_a),
            _asked(a, a.infer, of_a)[kept_a],
            _asked(b, b.infer, of_b)[kept_b],
            tuple(skipped.values()),
        )


def _asked(engine: Engine, infer: Callable[[Floats], Floats], batch: Batch) -> Probabilities:
    return infer(batch.images) if batch.samples else np.empty((0, len(engine.contract.classes)), np.float32)


def samples_of(source: Path | Dataset, classes: Sequence[str]) -> Samples:
    """The images of a file, folder or shards, with labels where all of them have one among `classes`.

    Those of a folder are the names of its sub-folders, or stand in its file of labels.

    Raises:
        DataError: there is no image.
    """
    if isinstance(source, Dataset):
        if source.part or (source.labels and (source.root / source.labels).is_file()):
            return source.labeled(classes or None, allow_missing=True).samples
        source = source.root
    if is_shards(source):
        images, own = shard_samples(source)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([*(label_of.get(name, -1) for name in own), -1], np.int32)[images.labels]
        return images.labeled(labels if (labels >= 0).all() else np.full(len(labels), -1, np.int32))
    images = listed_images(source)
    index = {os.fsencode(name): label for label, name in enumerate(classes)}
    folders = [name.rpartition(b"/")[0].partition(b"/")[0] for name in images.names()]
    if source.is_dir() and all(folder in index for folder in folders):
        return images.labeled(np.array([index[folder] for folder in folders], np.int32))
    return images


def require_same_meaning(a: Contract, b: Contract, *, own_preprocessing: bool) -> None:
    """Refuses models whose predictions can't be compared.

    Raises:
        ArtefactError: classes differ, or preprocessing without `own_preprocessing`.
    """
    differences = a.differences(b)
    if not differences or (own_preprocessing and a.classes == b.classes and a.task == b.task):
        return
    found = f"the two models do not mean the same: {'; '.join(differences)} (the first model's value ≠ the second's)"
    found += lookalikes(a.classes, b.classes)
    advice = "compare files that were exported from one checkpoint"
    if a.classes == b.classes and a.task == b.task:
        advice += ", or let each have the images by its own contract with --own-preprocessing"
    raise ArtefactError(f"{found}; expected the same classes and preprocessing; {advice}")


def _comparison(
    classes: tuple[str, ...], samples: Sequence[Sample], a: Probabilities, b: Probabilities, skipped: Sequence[Skipped]
) -> Comparison:
    best_a, best_b = a.argmax(axis=1), b.argmax(axis=1)
    largest = np.abs(a - b).max(axis=1)
    top_k = min(TOP_K, len(classes))
    changed = tuple(
        Change(
            path=samples[row].path,
            label_a=classes[best_a[row]],
            label_b=classes[best_b[row]],
            confidence_a=float(a[row].max()),
            confidence_b=float(b[row].max()),
            truth=classes[samples[row].label] if samples[row].label >= 0 else None,
            source=samples[row].source,
        )
        for row in np.flatnonzero(best_a != best_b).tolist()
    )
    sets_a, sets_b = (np.sort(top_k_indices(answers, top_k)) for answers in (a, b))
    return Comparison(
        images=len(samples),
        top1_agreement=1 - len(changed) / len(samples),
        top_k=top_k,
        top_k_agreement=float((sets_a == sets_b).all(axis=1).mean()),
        max_abs_difference=float(np.max(largest)),
        p99=float(np.quantile(largest, 0.99, method="higher")),
        changed=changed,
        skipped=tuple(skipped),
        verdict=_verdict(samples, best_a, best_b),
    )


def _label_comparison(
    a: Contract,
    b: Contract,
    samples: Sequence[Sample],
    of_a: Probabilities,
    of_b: Probabilities,
    skipped: list[Skipped],
) -> Comparison:
    given_a, given_b = (given_labels(of, model.thresholds or ()) for of, model in ((of_a, a), (of_b, b)))
    truth = truth_of(samples, len(a.classes)) if all(sample.labels is not None for sample in samples) else None
    gaps, disputed = np.abs(of_a - of_b), given_a != given_b

    def named(flags: Flags) -> str:
        return SEPARATOR.join(name for name, has in zip(a.classes, flags, strict=True) if has)

    def change(row: int) -> Change:
        label = int(np.where(disputed[row], gaps[row], -1).argmax())
        confidences = float(of_a[row, label]), float(of_b[row, label])
        labels, right = (named(given_a[row]), named(given_b[row])), None if truth is None else named(truth[row])
        return Change(samples[row].path, *labels, *confidences, right, samples[row].source)

    agreement = 1 - float(disputed.any(axis=1).mean())
    verdicts = {} if truth is None else {
        name: _verdict_of(given_a[:, label] == truth[:, label], given_b[:, label] == truth[:, label])
        for label, name in enumerate(a.classes)
    }  # fmt: skip
    return Comparison(
        images=len(samples),
        top1_agreement=agreement,
        top_k=len(a.classes),
        top_k_agreement=agreement,
        max_abs_difference=float(gaps.max()),
        p99=float(np.quantile(gaps.max(axis=1), 0.99, method="higher")),
        changed=tuple(change(row) for row in np.flatnonzero(disputed.any(axis=1)).tolist()),
        skipped=tuple(skipped),
        verdict=None,
        verdicts=verdicts,
    )


def _verdict(samples: Sequence[Sample], best_a: NDArray[np.int64], best_b: NDArray[np.int64]) -> Verdict | None:
    labels = np.array([sample.label for sample in samples])
    if (labels < 0).any():
        return None
    return _verdict_of(best_a == labels, best_b == labels)


def _verdict_of(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> Verdict:
    return Verdict(
        images=len(right_a),
        right_a=int(right_a.sum()),
        right_b=int(right_b.sum()),
        only_a_right=int((right_a & ~right_b).sum()),
        only_b_right=int((right_b & ~right_a).sum()),
    )
