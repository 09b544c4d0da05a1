"""Parity: whether an exported file answers as the network does, how far apart the two may be, and why one is refused.

Both sides see the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.artefacts.sidecar import Parity
from trt_cls.contract import INPUT, OUTPUT, Precision, Preprocessing, Task
from trt_cls.engines.backends import Provider, open_engine
from trt_cls.engines.engine import infer_fed
from trt_cls.engines.onnxruntime import session_of
from trt_cls.engines.torch import TorchEngine
from trt_cls.errors import DataError, ExportError
from trt_cls.evaluation.metrics import class_counts, one_answer
from trt_cls.evaluation.multi_label import Flags, given_labels, label_agreement
from trt_cls.evaluation.temperature import softened
from trt_cls.export.original import Original
from trt_cls.export.sample_images import ImageSet

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images [n,C,H,W] → probabilities [n,classes]."""
Thresholds = tuple[float, ...] | None
"""Of a multi-label model; None: it has one class per image."""

ROUNDING = 8
"""How many times as far from float64 as the float32 network an FP32 file may be, beyond its plain bound.

Both round the same numbers in another order, and the largest of few such errors vary: untrained EfficientNets, which
multiply the rounding of their input by thousands, gave 0.5 to 2 times. A planted fault gives thousands."""

FURTHEST = 32
"""Images that are computed in float64: an EfficientNet-B0 at 224×224 takes a second for each on one core."""


@dataclass(frozen=True)
class Bounds:
    """How far an artefact may be from the network."""

    top1_agreement: float
    max_abs_difference: float
    tie: float
    """How far apart the network's two best classes are where another best class is no disagreement."""
    remedy: str


BOUNDS: dict[Precision, Bounds] = {
    # Both sides compute in float32 and add in another order: 8 torchvision families differed by at most 5e-5, and
    # networks that round more are compared with float64. Two classes that move by the bound meet at twice of it.
    "fp32": Bounds(1.0, 1e-4, tie=2e-4, remedy="the export changed the network: report it with the spec"),
    # float16 has 11 significant bits: logits around 10 carry errors around 1e-2, which move a probability by a quarter
    # of that at most, somewhat more where errors add up over many layers. A saturated layer moves it by tenths.
    # Two classes within 0.01 are ordered by rounding; of the other images 1 in 100 may change its best class.
    "fp16": Bounds(
        0.99, 0.05, tie=0.01, remedy="float16 is too coarse or too small for this network: export without --fp16"
    ),
    # INT8 moves the probabilities of an image whose two likeliest classes are nearly equal by tenths, which says little
    # of its accuracy: a resnet18 that lost none moved one of 512 images by 0.1. What counts is that nine of ten of
    # the other images keep their class.
    "int8": Bounds(
        0.90,
        0.5,
        tie=0.02,
        remedy="8 bits round this network too coarsely: calibrate on more images of the kind, leave layers in float16 "
        "with --int8-keep first,last or --auto 1, or train it further with extensions.quantization",
    ),
    # E4M3 has 4 significant bits: some 10 dB more noise than INT8 on small networks.
    "fp8": Bounds(
        0.90,
        0.5,
        tie=0.05,
        remedy="FP8 rounds this network too coarsely: export with --int8 or --fp16, or leave layers in float16 with "
        "--fp8 --auto 1",
    ),
}
OVERFLOW: dict[Precision, str] = {
    "fp32": BOUNDS["fp32"].remedy,
    "fp16": "float16 is too small for its activations: export without --fp16",
    "int8": "float16, which the layers outside INT8 compute in, is too small for its activations: export in FP32",
    "fp8": "float16, which the layers outside FP8 compute in, is too small for its activations: export in FP32",
}
"""What to do about a file that answers NaN or infinity where the network does not."""


UNKNOWN_CAUSE = (
    "rounding or a changed network; only the checkpoint's answers in float64 show which: "
    "export from the .safetensors checkpoint"
)


class Checked(NamedTuple):
    """An artefact within its bounds."""

    parity: Parity
    remarks: tuple[str, ...] = ()
    """What the check could not show, or showed in addition, one sentence each."""


class Answers(NamedTuple):
    """Probabilities [n,classes] of both sides."""

    expected: NDArray[np.float32]
    found: NDArray[np.float32]

    @property
    def difference(self) -> float:
        """The largest of two probabilities; NaN where one is."""
        return float(np.abs(self.expected - self.found).max(initial=0))

    def agreement(self, tie: float, thresholds: Thresholds = None) -> float:
        """Share of images with the same best class, or whose two best are at most `tie` apart for the network.

        With `thresholds` that of labels, see `label_agreement`; tied is one as near to its threshold for the network.
        """
        if thresholds is not None:
            expected, found = (given_labels(side, thresholds) for side in self)
            return label_agreement(expected, found, np.abs(self.expected - np.array(thresholds)) <= tie)
        ranked = np.sort(self.expected, axis=1)
        tied = (ranked[:, -1] - ranked[:, -2] <= tie) if ranked.shape[1] > 1 else True
        return float(np.mean(tied | (self.expected.argmax(1) == self.found.argmax(1))))


def checked(
    artefact: Infer,
    reference: Infer,
    images: ImageSet,
    precision: Precision,
    exact: Callable[[], Infer] | None = None,
    thresholds: Thresholds = None,
) -> Checked:
    """The parity of `artefact` with `reference`, which `exact` opens once more to compute in float64.

    `thresholds` are those of a multi-label `artefact`.

    An FP32 file that is further from `reference` than its bound is compared with float64, where there is `exact`.

    Raises:
        ExportError: it is out of the bounds of `precision`.
        DataError: none of the images can be decoded.
    """
    bounds = BOUNDS[precision]
    answers = answers_of_both(artefact, reference, images.batches())
    if not len(answers.expected):
        raise DataError(
            f"{images.folder}: holds no image that can be decoded; expected some to check the export on; "
            "name others with --images"
        )
    source = images.describe(len(answers.expected))
    _require_numbers(answers, precision, source)
    if thresholds is None:
        remarks = _one_class(answers.expected, images, source)
    else:
        remarks = _same_labels(given_labels(answers.expected, thresholds), source)
    agreement = answers.agreement(bounds.tie, thresholds)
    parity = Parity(len(answers.expected), agreement, float(f"{answers.difference:.2g}"), source)
    if agreement >= bounds.top1_agreement and answers.difference <= bounds.max_abs_difference:
        return Checked(parity, remarks)
    refusal = (
        f"the {precision} file does not answer as the network does: {figures(parity, _task(thresholds))}; "
        f"expected at least {bounds.top1_agreement:.0%} and at most {bounds.max_abs_difference:g}"
    )
    if precision != "fp32":
        raise ExportError(f"{refusal}, so it was not kept; {bounds.remedy}")
    if exact is None:
        raise ExportError(f"{refusal}, so it was not kept; {UNKNOWN_CAUSE}")
    network, file = _errors(answers, exact(), images)
    rounding = f"in float32 the network is up to {network:.2g} from its answers in float64, the file {file:.2g}"
    # written so that a NaN is out of bounds
    if not file <= max(ROUNDING * network, bounds.max_abs_difference):
        raise ExportError(
            f"{refusal}, or {ROUNDING} times float32's own rounding ({rounding}), so it was not kept; {bounds.remedy}"
        )
    # two classes that are this near to each other for the network are ordered by rounding
    agreement = answers.agreement(2 * (network + file), thresholds)
    return Checked(replace(parity, top1_agreement=agreement), (*remarks, f"{rounding}: rounding, not the export"))


def answers_of_both(artefact: Infer, reference: Infer, batches: Iterable[NDArray[np.float32]]) -> Answers:
    """What both sides answer, of no image where there is no batch."""
    pairs = [(reference(batch), artefact(batch)) for batch in batches]
    if not pairs:
        return Answers(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
    return Answers(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def figures(parity: Parity, task: Task = "single") -> str:
    """The figures in one phrase."""
    of = "label" if task == "multi" else "top-1"
    return (
        f"{of} agreement {parity.top1_agreement:.2%}, max |Δprobability| {parity.max_abs_difference:.2g} "
        f"on {parity.source}"
    )


def _require_numbers(answers: Answers, precision: Precision, source: str) -> None:
    network, file = (int((~np.isfinite(side)).any(axis=1).sum()) for side in answers)
    if network:
        raise ExportError(
            f"the network itself answers NaN or infinity for {network} images, on {source}; expected numbers; "
            "its weights are broken or float32 overflows: look at the training"
        )
    if file:
        raise ExportError(
            f"the {precision} file does not answer as the network does: NaN or infinity for {file} images, the "
            f"network for none, on {source}; expected numbers, so it was not kept; {OVERFLOW[precision]}"
        )


def _one_class(expected: NDArray[np.float32], images: ImageSet, source: str) -> tuple[str, ...]:
    given = expected.argmax(axis=1)
    if expected.shape[1] == 1 or len(np.unique(given)) > 1:
        return ()
    nothing = "the check proves nothing about the labels"
    labels = np.array([sample.label for sample in images.samples])
    if len(labels) == len(given) and labels.min() >= 0:
        counts = class_counts(given, labels, expected.shape[1])
        if named := one_answer(counts, images.classes):
            return (f"{named}: {nothing}; train the network longer, or look at its training.html",)
    name = f", {images.classes[given[0]]}," if images.classes else ""
    return (
        f"the network answers one class alone{name} on {source}: {nothing}; "
        "name images of all classes with --images DIR",
    )


def _task(thresholds: Thresholds) -> Task:
    return "single" if thresholds is None else "multi"


def _same_labels(given: Flags, source: str) -> tuple[str, ...]:
    if not (given == given[0]).all():
        return ()
    return (
        f"the network gives all images the same labels on {source}: the check proves nothing about them; train the "
        "network longer, or name other images with --images DIR",
    )


def _errors(answers: Answers, exact: Infer, images: ImageSet) -> tuple[float, float]:
    """How far network and artefact are from `exact` at most, on those images on which the two differ most."""
    furthest = np.argsort(-np.abs(answers.expected - answers.found).max(axis=1))[:FURTHEST]
    largest, start = np.zeros(2), 0
    for batch in images.batches():
        rows = furthest[(start <= furthest) & (furthest < start + len(batch))]
        if len(rows):
            true = exact(batch[rows - start])
            largest = np.maximum(largest, [np.abs(side[rows] - true).max() for side in answers])
        start += len(batch)
    return float(largest[0]), float(largest[1])


def _in_float64(reference: TorchEngine, fed: Preprocessing, opened: ExitStack) -> Infer:
    return infer_fed(opened.enter_context(closing(reference.in_float64())), fed)


@dataclass(frozen=True)
class Check:
    """Holds artefacts against one model on the same images."""

    model: Original
    precision: Precision
    images: ImageSet
    temperature: float = 1.0
    """What the artefact divides the network's logits by."""
    thresholds: Thresholds = None
    """Of a multi-label artefact."""

    def __call__(self, artefact: Path, provider: Provider) -> Checked:
        """The parity of `artefact`.

        Raises:
            ExportError: it is out of bounds.
            MissingDependency, DeviceError: this machine can't run it.
        """
        with closing(open_engine(artefact, provider)) as opened:
            return self._held(opened.infer)

    def explained(self, refusal: ExportError, plain: OnnxModel) -> ExportError:
        """`refusal`, or, where `plain` in float32 was converted, what was wrong before with that."""
        if self.precision == "fp32" or plain.contract.precision != "fp32":
            return refusal
        described = replace(self.images.preprocessing, embedded=False)
        images, thresholds = replace(self.images, preprocessing=described), plain.contract.thresholds
        before = Check(self.model, "fp32", images, thresholds=thresholds)
        session = session_of(plain.proto)
        try:
            before._held(lambda batch: session.run([OUTPUT], {INPUT: batch})[0])
        except ExportError as earlier:
            return ExportError(f"before the conversion to {self.precision}: {earlier}")
        return refusal

    def _held(self, infer: Infer) -> Checked:
        fed = self.images.preprocessing
        with ExitStack() as opened:
            reference = opened.enter_context(closing(self.model.engine()))
            expected, exact = self._softened(infer_fed(reference, fed)), None
            if isinstance(reference, TorchEngine):
                # divides the logits, which float32's probabilities near 1 give to a few digits
                reference.temperature, expected = self.temperature, infer_fed(reference, fed)
                exact = partial(_in_float64, reference, fed, opened)
            return checked(infer, expected, self.images, self.precision, exact, self.thresholds)

    def _softened(self, infer: Infer) -> Infer:
        task = _task(self.thresholds)
        return infer if self.temperature == 1 else lambda images: softened(infer(images), self.temperature, task)
