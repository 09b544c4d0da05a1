"""Whether an artefact answers as the network does, and how far apart the two may be.

Both sides see the same tensors. Where the images come from is known in `images`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.sidecar import Parity
from trt_cls.contract import Precision
from trt_cls.errors import DataError, ExportError
from trt_cls.export.images import Images

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images [n,C,H,W] → probabilities [n,classes]."""


@dataclass(frozen=True)
class Bounds:
    """How far an artefact may be from the network."""

    top1_agreement: float
    max_abs_difference: float
    tie: float
    """How far apart the network's two best classes are where another best class is no disagreement."""
    cure: str


BOUNDS: dict[Precision, Bounds] = {
    # Both sides compute in float32 and add in another order: 8 torchvision families differed by at most 5e-5.
    # The best class may then change only where the two best are closer than the bound itself.
    "fp32": Bounds(1.0, 1e-4, tie=1e-4, cure="the exporter changed the network: report it with the spec"),
    # float16 has 11 significant bits: logits around 10 carry errors around 1e-2, which move a probability by a quarter
    # of that at most, somewhat more where errors add up over many layers. A saturated layer moves it by tenths.
    # Two classes within 0.01 are ordered by rounding; of the other images 1 in 100 may change its best class.
    "fp16": Bounds(
        0.99, 0.05, tie=0.01, cure="float16 is too coarse or too small for this network: export without --fp16"
    ),
    # INT8 moves the probabilities of an image that the network is in two minds about by tenths, which says little of
    # its accuracy: a resnet18 that lost none moved one of 512 images by 0.1. What counts is that nine of ten images
    # that it is not in two minds about keep their class.
    "int8": Bounds(
        0.90,
        0.5,
        tie=0.02,
        cure="calibrate on more images of the kind, leave layers in float16 with --int8-keep first,last or "
        "--int8-auto 1, or train it further with extensions.quantization",
    ),
}


def checked(artefact: Infer, reference: Infer, images: Images, precision: Precision) -> Parity:
    """The parity of `artefact` with `reference`.

    Raises:
        ExportError: it is out of the bounds of `precision`.
        DataError: none of the images can be decoded.
    """
    bounds = BOUNDS[precision]
    count, agreement, difference = measure(artefact, reference, images.batches(), bounds.tie)
    if count == 0:
        raise DataError(
            f"{images.folder}: holds no image that can be decoded; expected some to check the export on; "
            "name others with --images"
        )
    parity = Parity(count, agreement, float(f"{difference:.2g}"), images.describe(count))
    # Written so that a NaN is out of bounds.
    if not (agreement >= bounds.top1_agreement and difference <= bounds.max_abs_difference):
        raise ExportError(
            f"the {precision} file does not answer as the network does: {figures(parity)}; expected at least "
            f"{bounds.top1_agreement:.0%} and at most {bounds.max_abs_difference:g}, so it was not kept; {bounds.cure}"
        )
    return parity


def measure(
    artefact: Infer, reference: Infer, batches: Iterable[NDArray[np.float32]], tie: float
) -> tuple[int, float, float]:
    """Number of images, share with the same best class (or tied ones), largest difference of two probabilities."""
    count = same = 0
    largest = 0.0
    for batch in batches:
        expected, found = reference(batch), artefact(batch)
        ranked = np.sort(expected, axis=1)
        tied = ranked[:, -1] - ranked[:, -2] <= tie
        same += int(np.count_nonzero(tied | (expected.argmax(1) == found.argmax(1))))
        count += len(batch)
        largest = float(np.maximum(largest, np.abs(expected - found).max()))  # keeps a NaN, unlike max()
    return count, same / max(count, 1), largest


def figures(parity: Parity) -> str:
    """The figures in one phrase."""
    return (
        f"top-1 agreement {parity.top1_agreement:.2%}, max |Δprobability| {parity.max_abs_difference:.2g} "
        f"on {parity.source}"
    )
