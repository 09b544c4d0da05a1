"""Labels for images that have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.folder import Sample
from trt_cls.engines.engine import Engine
from trt_cls.evaluation.evaluate import Predictions, predict


def infer(engine: Engine, images: Sequence[Path], *, batch_size: int, workers: int) -> Predictions:
    """The answers of `engine` for `images`; those that can't be decoded are listed, not answered.

    Raises:
        DataError: no image can be decoded.
        EngineError: the run failed, or its answers are no numbers.
    """
    return predict(engine, [Sample(path) for path in images], batch_size=batch_size, workers=workers)


def likeliest(probabilities: NDArray[np.float32], classes: Sequence[str], top_k: int) -> list[tuple[str, float]]:
    """The `top_k` likeliest classes of one image (all, where there are fewer) with their probabilities, best first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(classes[index], float(probabilities[index])) for index in order]
