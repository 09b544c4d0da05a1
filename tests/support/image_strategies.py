"""Images and resizes for hypothesis: any size to 4000×3000, to any other between a 60th and 60 times of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from trt_cls.contract import Preprocessing

FILTERS = ["bilinear", "bicubic"]
CROPS = ["center", "none"]
EXTREME = [
    ((4000, 3000), (66, 50), "none", "bicubic"),  # 60 to 1
    ((3000, 4000), (50, 66), "none", "bilinear"),
    ((4000, 3000), (224, 224), "center", "bicubic"),
    ((4000, 70), (1, 1), "none", "bicubic"),
    ((1, 4000), (33, 17), "none", "bilinear"),
    ((1, 1), (224, 160), "center", "bicubic"),
    ((3, 2), (180, 120), "none", "bicubic"),  # 1 to 60
    ((224, 224), (224, 224), "center", "bicubic"),
    ((40, 30), (300, 260), "center", "bilinear"),
]
"""Width and height of an image and of what it becomes, crop, filter."""


class Case(NamedTuple):
    """What to resize, and how."""

    size: tuple[int, int]
    preprocessing: Preprocessing
    seed: int

    def image(self) -> Image.Image:
        return noise(np.random.default_rng(self.seed), *self.size, self.preprocessing.channels)


def plain(channels: int, height: int, width: int, crop: str, filter_name: str) -> Preprocessing:
    """One whose tensors are the resized pixels themselves."""
    order = "rgb" if channels == 3 else "gray"
    ones, zeros = (1.0,) * channels, (0.0,) * channels
    return Preprocessing(channels, height, width, crop, filter_name, order, 1.0, zeros, ones)


def noise(random: np.random.Generator, width: int, height: int, channels: int) -> Image.Image:
    """Random pixels, or only black and white ones, which drive bicubic sums beyond both ends of the range."""
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if random.random() < 0.5:
        pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def lengths(largest: int) -> st.SearchStrategy[int]:
    """1 to `largest`, each power of two as likely as the next: most bugs need no large image."""
    return st.integers(0, largest.bit_length()).flatmap(lambda bits: st.integers(1, min(2**bits, largest)))


def reachable(have: int, largest: int) -> st.SearchStrategy[int]:
    """Lengths that `have` pixels can become by a ratio of 60 at most."""
    return st.integers(-(-have // 60), min(have * 60, largest))


@st.composite
def cases(draw: st.DrawFn, largest: tuple[int, int] = (4000, 3000), target: int = 300) -> Case:
    size = draw(lengths(largest[0])), draw(lengths(largest[1]))
    width, height = draw(reachable(size[0], target)), draw(reachable(size[1], target))
    channels, crop = draw(st.sampled_from([1, 3])), draw(st.sampled_from(CROPS))
    preprocessing = plain(channels, height, width, crop, draw(st.sampled_from(FILTERS)))
    return Case(size, preprocessing, draw(st.integers(0, 2**20)))
