"""The images that an artefact is checked and calibrated on: of a folder or dataset, or random ones if nothing is given.

Does not know: labels, and what is measured on the images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import Sample, evenly_spread
from trt_cls.data.split import Dataset
from trt_cls.data.stream import WORKERS, stream
from trt_cls.evaluation.compare import samples_of
from trt_cls.preprocessing.pillow import normalize

MOST_IMAGES = 512
"""Enough that a disagreement of 1 in 100 shows; a resnet50 takes about 30 s for both sides on two cores."""
RANDOM = 64
BATCH = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Images, decoded again on each pass."""

    preprocessing: Preprocessing
    folder: Path | None
    """None: random pixels."""
    samples: tuple[Sample, ...]
    total: int
    """Images in the folder, of which `samples` are a part."""
    classes: tuple[str, ...] = ()
    """Of the network; `samples` are labeled if all are in folders named so."""

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Preprocessed images, float32 [n,C,H,W]; what can't be decoded is left out with a warning."""
        if self.folder is None:
            yield from _random_batches(self.preprocessing)
            return
        for batch in stream(self.samples, self.preprocessing, batch_size=BATCH, workers=WORKERS):
            for skipped in batch.skipped:
                log.warning("%s: left out: %s", skipped.path, skipped.reason)
            if len(batch.images):
                yield batch.images

    def describe(self, used: int) -> str:
        """What they are, when `used` of them could be decoded."""
        if self.folder is None:
            return f"{used} random images"
        undecoded = len(self.samples) - used
        return f"{used} of {self.total} images of {self.folder}" + (
            f" ({undecoded} can't be decoded)" if undecoded else ""
        )


def images_for(
    preprocessing: Preprocessing, source: Path | Dataset | None, most: int = MOST_IMAGES, classes: Sequence[str] = ()
) -> ImageSet:
    """Up to `most` images from all over `source`, the same ones each time; without a folder 64 random ones.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    found = samples_of(source, classes) if source else []
    root = source.root if isinstance(source, Dataset) else source
    return ImageSet(preprocessing, root, tuple(evenly_spread(found, most)), len(found), tuple(classes))


def _random_batches(preprocessing: Preprocessing) -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    for _ in range(RANDOM // BATCH):
        pixels = generator.integers(0, 256, (BATCH, *shape), dtype=np.uint8)
        yield np.stack([normalize(image, preprocessing) for image in pixels])
