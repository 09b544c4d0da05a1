"""Pictures to measure speed on, where nobody names any.

What is not known here: what is measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GENERATED, GENERATED_SIZE, QUALITY = 64, (500, 375), 90
"""Pictures that are made where none are given: a common size of photographs on the web."""


def write_pictures(folder: Path) -> list[Path]:
    """JPEG files that take a decoder about as long as photographs of their size: smooth shapes, and noise on them."""
    random = np.random.default_rng(0)
    width, height = GENERATED_SIZE
    paths = []
    for number in range(GENERATED):
        shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(GENERATED_SIZE)
        noise = random.normal(0, 6, (height, width, 1))
        picture = Image.fromarray(np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8))
        paths.append(folder / f"{number:03}.jpg")
        picture.save(paths[-1], quality=QUALITY)
    return paths
