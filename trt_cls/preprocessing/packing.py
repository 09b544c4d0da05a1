"""A batch of images of different sizes as the arguments of `kernels/preprocess.cu`, and the kernel's grid.

Does not know: devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.pillow import Axis, Filter, FilterTable, Pixels, axes, filter_table, normalized_bytes, span

SOURCE = np.dtype([("pixels", np.int64), ("across", np.int64), ("down", np.int64), ("width", np.int64)])
"""One image: the offsets of its bytes and of the tables of its two axes, and its width; `Source` in the kernel."""
CHANGE = np.dtype(
    [
        ("hue", np.float32), ("saturation", np.float32), ("contrast", np.float32), ("colored", np.int32),
        ("mirrored", np.int32), ("shift", np.int32, 2), ("erased", np.int32, 4),
    ]
)  # fmt: skip
"""How training changes one image; `Change` in the kernel. Shifted down, across; erased: left, top, right, bottom."""
TILE = (32, 32)
"""Width and height of one block's output."""
BLOCK = (32, 8, 1)
"""Threads of a block."""
MOST_IMAGES = 65_535
"""Images of one launch: a grid has no more blocks along its third axis."""
ALIGNMENT = 16
"""Bytes: the kernel loads four weights at once."""
SLACK = 16
"""Bytes behind the last pixel that the kernel may load: it takes pixels by fours, in aligned words."""


class Cut(NamedTuple):
    """The source pixels that the window of two axes reads."""

    pixels: Pixels
    """[height,width,channels], a view of the image."""
    left: int
    top: int
    """Where they begin in the image."""
    both: tuple[Axis, Axis]
    """The axes across and down, of the full image."""


def cut(image: Pixels, both: tuple[Axis, Axis], filter_name: Filter) -> Cut:
    """The smallest part of `image`, uint8 [height,width,channels], that its window can be computed from."""
    (left, right), (top, bottom) = (span(axis, filter_name) for axis in both)
    return Cut(image[top:bottom, left:right], left, top, both)


class Packed(NamedTuple):
    """What the kernel reads for a batch."""

    sources: npt.NDArray[np.void]
    """[n] of SOURCE."""
    tables: FilterTable
    """The tables of `pillow.filter_table` that the batch needs, each once, flat."""
    pixels: tuple[Pixels, ...]
    """What the windows read, [height,width,channels]; the kernel needs them one after the other."""
    size: tuple[int, int]
    """Width and height of each window."""


def pack(images: Sequence[Pixels], preprocessing: Preprocessing) -> Packed:
    """The batch of one or more `images`, uint8 [height,width,channels] as `pillow.hwc` returns them.

    Raises:
        DataError: an image is too long and thin for a crop.
    """
    name = preprocessing.filter
    cuts = [cut(image, axes((image.shape[1], image.shape[0]), preprocessing), name) for image in images]
    return pack_cuts(cuts, name)


def pack_cuts(cuts: Sequence[Cut], filter_name: Filter) -> Packed:
    """The batch of one or more windows."""
    places: dict[Axis, int] = {}
    tables: list[FilterTable] = []
    end_of_tables = end_of_pixels = 0
    sources = np.empty(len(cuts), SOURCE)
    size = cuts[0].both[0].outputs, cuts[0].both[1].outputs
    for index, (pixels, left, top, both) in enumerate(cuts):
        for axis in both:
            if axis not in places:
                places[axis] = end_of_tables
                tables.append(filter_table(axis, filter_name))
                end_of_tables += tables[-1].size
        _check(cuts[index], filter_name, size)
        _, width, channels = pixels.shape
        # The tables count from the full image's first pixel, which may not be part of the cut.
        origin = end_of_pixels - (top * width + left) * channels
        sources[index] = (origin, places[both[0]], places[both[1]], width)
        end_of_pixels += pixels.size
    return Packed(sources, np.concatenate(tables), tuple(part.pixels for part in cuts), size)


class Bundle:
    """All that the kernel reads for a batch in one block of memory, so that one copy takes it to the GPU."""

    def __init__(
        self, packed: Packed, preprocessing: Preprocessing, changes: npt.NDArray[np.void] | None = None
    ) -> None:
        channels = {part.shape[2] for part in packed.pixels}
        if channels != {preprocessing.channels} or packed.size != (preprocessing.width, preprocessing.height):
            raise ValueError(f"windows {packed.size} of {channels} channels for {preprocessing}")
        if changes is not None and (changes.dtype != CHANGE or len(changes) != len(packed.sources)):
            raise ValueError(f"{len(changes)} changes of {changes.dtype} for {len(packed.sources)} images")
        sides = preprocessing.height, preprocessing.width
        if changes is not None and (np.abs(changes["shift"].astype(np.int64)) >= sides).any():
            raise ValueError(f"shifts {changes['shift'].tolist()}; expected shifts by less than {sides}")
        # What must be aligned comes first.
        values = normalized_bytes(preprocessing)  # by source channel
        values = np.ascontiguousarray(values[::-1] if preprocessing.channel_order == "bgr" else values)
        heads = [packed.sources, *([] if changes is None else [changes]), packed.tables, values]
        self._heads = [head.view(np.uint8).reshape(-1) for head in heads]
        self._pixels = packed.pixels
        sizes = [-(-head.size // ALIGNMENT) * ALIGNMENT for head in self._heads]
        *starts, pixels = (int(end) for end in np.cumsum([0, *sizes]))
        self.starts = pixels, *starts
        """Offsets of the kernel's first arguments, in its order: pixels, sources, changes if any, tables, values."""
        self.size = pixels + sum(part.size for part in self._pixels) + SLACK

    def write(self, out: Pixels) -> None:
        """Fills `out`, flat and of this size."""
        if out.dtype != np.uint8 or out.shape != (self.size,):
            raise ValueError(f"memory of {out.dtype} {out.shape}; expected uint8 {(self.size,)}")
        end, *starts = self.starts
        out[:end] = 0  # between the heads too: equal batches are equal bytes
        for start, head in zip(starts, self._heads, strict=True):
            out[start : start + head.size] = head
        for part in self._pixels:
            out[end : end + part.size].reshape(part.shape)[...] = part
            end += part.size
        out[end:] = 0


def bytes_needed(sizes: Sequence[tuple[int, int]], preprocessing: Preprocessing) -> int:
    """The least bytes of a launch: each source byte that the output depends on read once, each float32 written once.

    `sizes` are (width, height) of the images.
    """
    channels, height, width = preprocessing.input_shape
    read = 0
    for size in sizes:
        (left, right), (top, bottom) = (span(axis, preprocessing.filter) for axis in axes(size, preprocessing))
        read += (right - left) * (bottom - top) * channels
    return read + len(sizes) * channels * height * width * 4


def scalars(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The kernel's arguments `reversed`, `height` and `width`."""
    return int(preprocessing.channel_order == "bgr"), preprocessing.height, preprocessing.width


def kernel_name(preprocessing: Preprocessing, family: Literal["preprocess", "augment"] = "preprocess") -> str:
    """The kernel for this number of channels."""
    return f"{family}_{'gray' if preprocessing.channels == 1 else 'color'}_float32"


def grid(preprocessing: Preprocessing, images: int) -> tuple[int, int, int]:
    """Blocks: tiles across, tiles down, images."""
    return -(-preprocessing.width // TILE[0]), -(-preprocessing.height // TILE[1]), images


def _check(given: Cut, filter_name: Filter, size: tuple[int, int]) -> None:
    """Refuses what would make the kernel read beyond its pixels or tables.

    Raises:
        ValueError: these are not the pixels that the window reads, or it is not of `size`.
    """
    pixels, left, top, both = given
    inside = all(axis.start >= 0 and axis.start + axis.outputs <= axis.resized for axis in both)
    if not inside or (both[0].outputs, both[1].outputs) != size:
        raise ValueError(f"window {both}; expected {size}, inside the resized image")
    (first, after), (first_row, after_row) = (span(axis, filter_name) for axis in both)
    sound = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)
    if not sound or (left, top, *pixels.shape[:2]) != (first, first_row, after_row - first_row, after - first):
        raise ValueError(f"pixels {pixels.dtype} {pixels.shape} at {left}, {top} are not those of {both}")
