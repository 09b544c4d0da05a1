"""Odd sizes through the kernels on the GPU, a few blocks each, for compute-sanitizer, which slows them a hundredfold.

Needs no pytest: compute-sanitizer --tool memcheck --error-exitcode 1 python tests/gpu/small_batches.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from random import Random

import numpy as np
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import Box, apply, plan
from trt_cls.data.transforms import bundle, kernel_image
from trt_cls.errors import TrtClsError
from trt_cls.preprocessing.cuda import CudaAugmentation, CudaPreprocessing, Staging
from trt_cls.preprocessing.packing import Bundle
from trt_cls.preprocessing.pillow import Floats, Pixels, fit, hwc, normalize
from trt_cls.spec.experiment import LrConfig, Optimizer, RegConfig, TrainConfig

SIZES = [(1, 1), (1, 90), (90, 1), (3, 2), (33, 17), (64, 65), (7, 300), (500, 375)]
"""(width, height)"""
TRAIN = TrainConfig(
    train_dataset_path="",
    val_dataset_path="",
    optimizer=Optimizer(),
    reg_config=RegConfig(type="None"),
    lr_config=LrConfig(),
)
TARGETS = [(1, 1), (33, 17), (32, 16), (70, 40), (31, 224)]
"""(height, width): whole tiles of the kernel, and one pixel more and less."""


def descriptions() -> Iterator[Preprocessing]:
    for height, width in TARGETS:
        for crop in ("center", "none"):
            for filter_name in ("bilinear", "bicubic"):
                yield Preprocessing(3, height, width, crop, filter_name, "bgr", 255.0, (0.4,) * 3, (0.2,) * 3)
                yield Preprocessing(1, height, width, crop, filter_name, "gray", 1.0, (117.0,), (1.0,))


def noise(preprocessing: Preprocessing) -> list[Image.Image]:
    """An image of each of SIZES."""
    random = np.random.default_rng(0)
    shapes = [(height, width, 3)[: 3 if preprocessing.channels == 3 else 2] for width, height in SIZES]
    return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def different_values(preprocessing: Preprocessing) -> int:
    """How many of the values that the GPU gives for images of all SIZES are not those of the CPU, to the bit."""
    images = noise(preprocessing)
    kernel = CudaPreprocessing(preprocessing)
    found = kernel.preprocess([hwc(image) for image in images])
    kernel.close()
    expected = np.stack([normalize(fit(image, preprocessing), preprocessing) for image in images])
    return int(np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32)))


def different_augmented_values(preprocessing: Preprocessing) -> int:
    """The same for the images of a training."""
    rng = Random(0)
    erased = Box(0, 0, preprocessing.width // 2, preprocessing.height // 2)
    images = [hwc(image) for image in noise(preprocessing)]
    plans = [
        plan(size, preprocessing, TRAIN, rng)._replace(erased=erased, shift=shift)
        for size, shift in zip(SIZES, shifts(preprocessing), strict=True)
    ]
    parts = [kernel_image(image, drawn, preprocessing) for image, drawn in zip(images, plans, strict=True)]
    with closing(CudaAugmentation(preprocessing)) as kernel:
        found = augmented(kernel, bundle(parts, preprocessing), len(images))
    tensors = [
        normalize(apply(drawn, image, preprocessing.filter), preprocessing)
        for image, drawn in zip(images, plans, strict=True)
    ]
    expected = np.stack(tensors)
    expected[:, :, : erased.bottom, : erased.right] = 0
    return int(np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32)))


def shifts(preprocessing: Preprocessing) -> list[tuple[int, int]]:
    """Of the images of SIZES: none, and as far as it goes to each side."""
    down, across = preprocessing.height - 1, preprocessing.width - 1
    return [(0, 0), (down, 0), (0, across), (-down, 0), (0, -across), (down, -across), (-down, across), (0, 0)]


def augmented(kernel: CudaAugmentation, made: Bundle, images: int) -> Floats:
    """What the kernel makes of a bundle, without torch."""
    shape = images, *kernel.shape
    with kernel.current():
        content, output = Staging(kernel.cuda), Staging(kernel.cuda)
        host, device = content.of_size(made.size)
        made.write(host)
        kernel.cuda.memcpy_htod_async(device, host, kernel.stream)
        host_output, device_output = output.of_size(int(np.prod(shape)) * 4)
        kernel.launch(int(device), made.starts, images, int(device_output))
        kernel.cuda.memcpy_dtoh_async(host_output, device_output, kernel.stream)
        kernel.stream.synchronize()
        found: Pixels = host_output.copy()
        del host, host_output, device, device_output, content, output
    return found.view(np.float32).reshape(shape)


def main() -> int:
    try:
        counts = [
            different_values(preprocessing) + different_augmented_values(preprocessing)
            for preprocessing in descriptions()
        ]
    except TrtClsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(counts)} descriptions × {len(SIZES)} images: {sum(counts)} values differ from the CPU's")
    return int(any(counts))


if __name__ == "__main__":
    sys.exit(main())
