"""Test-time augmentation: an engine that answers with the mean over an image and its mirror image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_cls.engines.engine import Engine


class WithFlips:
    """`engine` on each batch and on the batch flipped left to right; takes twice the time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.contract = engine.contract
        self.backend = f"{engine.backend} + flips"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of both probabilities, [n, classes]."""
        across = 2 if self.contract.preprocessing.embedded else 3
        mirrored = np.ascontiguousarray(np.flip(images, across))
        return (self._engine.infer(images) + self._engine.infer(mirrored)) / np.float32(2)

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()
