"""Multi-label pictures: each holds one to three squares of different colors, or none; its labels are the colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 40, 230), "green": (30, 220, 40), "red": (235, 40, 30)}
CLASSES = tuple(COLORS)


def write_composites(root: Path, images: int, seed: int, side: int = 20) -> Path:
    """`images` pictures below `root` and their labels.csv, with a header; every eighth has no label."""
    random = np.random.default_rng(seed)
    root.mkdir(parents=True)
    rows = ["path,labels"]
    for number in range(images):
        pixels = random.integers(0, 60, (side, side, 3), dtype=np.uint8)
        chosen = sorted(random.choice(3, random.integers(1, 4), replace=False)) if number % 8 else []
        for index in chosen:
            top, left = random.integers(0, side // 2, 2)
            pixels[top : top + side // 2, left : left + side // 2] //= 4
            pixels[top : top + side // 2, left : left + side // 2] += np.array(COLORS[CLASSES[index]], np.uint8) // 2
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{'|'.join(CLASSES[index] for index in chosen)}")
    (root / "labels.csv").write_text("\r\n".join([*rows, ""]))
    return root
