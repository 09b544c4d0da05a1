"""A batch of images of different sizes as the arguments of `kernels/preprocess.cu`.

Knows the kernel's arguments and its grid; nothing about devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import Floats, Pixels
from trt_cls.preprocessing.resampling import Axis, Table, axes, table

SOURCE = np.dtype([("pixels", np.int64), ("across", np.int64), ("down", np.int64), ("width", np.int64)])
"""One image: where its bytes and the tables of its two axes begin, and its width; `Source` in the kernel."""
TILE = (32, 16)
"""Width and height of the output that one block makes."""
BLOCK = (32, 8, 1)
"""Threads of a block."""


class Packed(NamedTuple):
    """What the kernel reads of a batch."""

    sources: npt.NDArray[np.void]
    """[n] of SOURCE."""
    tables: Table
    """The tables of `resampling.table` that the batch needs, each once, flat."""
    pixels: tuple[Pixels, ...]
    """The images, flat; the kernel wants them one after the other."""


def pack(images: Sequence[Pixels], preprocessing: Preprocessing) -> Packed:
    """The batch of one or more `images`, uint8 [height,width,channels] as `pillow.hwc` returns them.

    Raises:
        DataError: an image is too long and thin for a crop.
    """
    places: dict[Axis, int] = {}
    tables: list[Table] = []
    end_of_tables = end_of_pixels = 0
    sources = np.empty(len(images), SOURCE)
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        both = axes((width, height), preprocessing)
        for axis in both:
            if axis not in places:
                places[axis] = end_of_tables
                tables.append(table(axis, preprocessing.filter))
                end_of_tables += tables[-1].size
        sources[index] = (end_of_pixels, places[both[0]], places[both[1]], width)
        end_of_pixels += image.size
    return Packed(sources, np.concatenate(tables), tuple(image.reshape(-1) for image in images))


def bytes_needed(sizes: Sequence[tuple[int, int]], preprocessing: Preprocessing) -> int:
    """What a launch can't do without: each source byte that the output shows read once, each float32 written once.

    `sizes` are (width, height) of the images.
    """
    channels, height, width = preprocessing.input_shape
    read = 0
    for size in sizes:
        across, down = (_window(axis, preprocessing) for axis in axes(size, preprocessing))
        read += across * down * channels
    return read + len(sizes) * channels * height * width * 4


def _window(axis: Axis, preprocessing: Preprocessing) -> int:
    """Source pixels from the first that an axis looks at to the last."""
    flat, outputs = table(axis, preprocessing.filter), axis.outputs
    return int(flat[outputs - 1] + flat[2 * outputs - 1] - flat[0])


def normalization(preprocessing: Preprocessing) -> Floats:
    """The divisor, the means and the stds, flat."""
    return np.array([preprocessing.divisor, *preprocessing.mean, *preprocessing.std], np.float32)


def scalars(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The kernel's arguments `reversed`, `height` and `width`."""
    return int(preprocessing.channel_order == "bgr"), preprocessing.height, preprocessing.width


def kernel_name(preprocessing: Preprocessing, dtype: Literal["float32", "float16"]) -> str:
    """The kernel that writes tensors of `dtype`."""
    return f"preprocess_{'gray' if preprocessing.channels == 1 else 'color'}_{dtype}"


def grid(preprocessing: Preprocessing, images: int) -> tuple[int, int, int]:
    """Blocks: tiles across, tiles down, images."""
    return -(-preprocessing.width // TILE[0]), -(-preprocessing.height // TILE[1]), images
