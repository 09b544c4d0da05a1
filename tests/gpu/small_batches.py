"""Odd sizes through the kernel on the GPU, a few blocks each, for compute-sanitizer, which slows kernels a hundredfold.

Needs no pytest: compute-sanitizer --tool memcheck --error-exitcode 1 python tests/gpu/small_batches.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.errors import TrtClsError
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.pillow import hwc, preprocess

SIZES = [(1, 1), (1, 90), (90, 1), (3, 2), (33, 17), (64, 65), (7, 300), (500, 375)]
"""(width, height)"""
TARGETS = [(1, 1), (33, 17), (32, 16), (70, 40), (31, 224)]
"""(height, width): whole tiles of the kernel, and one pixel more and less."""


def descriptions() -> Iterator[Preprocessing]:
    for height, width in TARGETS:
        for crop in ("center", "none"):
            for filter_name in ("bilinear", "bicubic"):
                yield Preprocessing(3, height, width, crop, filter_name, "bgr", 255.0, (0.4,) * 3, (0.2,) * 3)
                yield Preprocessing(1, height, width, crop, filter_name, "gray", 1.0, (117.0,), (1.0,))


def different_values(preprocessing: Preprocessing) -> int:
    """How many of the values that the GPU gives for images of all SIZES are not those of the CPU, to the bit."""
    random = np.random.default_rng(0)
    shapes = [(height, width, 3)[: 3 if preprocessing.channels == 3 else 2] for width, height in SIZES]
    images = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    kernel = CudaPreprocessing(preprocessing)
    found = kernel.preprocess([hwc(image) for image in images])
    kernel.close()
    expected = np.stack([preprocess(image, preprocessing) for image in images])
    return int(np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32)))


def main() -> int:
    try:
        counts = [different_values(preprocessing) for preprocessing in descriptions()]
    except TrtClsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(counts)} descriptions × {len(SIZES)} images: {sum(counts)} values differ from the CPU's")
    return int(any(counts))


if __name__ == "__main__":
    sys.exit(main())
