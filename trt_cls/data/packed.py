"""Planned images as what the GPU's kernel for training reads: the source pixels that each needs, and its numbers.

Knows plans and the kernel's arguments; nothing about devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import Plan
from trt_cls.preprocessing.cpu import window
from trt_cls.preprocessing.packing import CHANGE, Bundle, Cut, cut, pack_cuts
from trt_cls.preprocessing.pillow import Pixels
from trt_cls.preprocessing.resampling import Axis

LARGEST = 4
"""Source pixels for one of the output, at most: they are then no more bytes than the output in float32."""


class Part(NamedTuple):
    """One image of a batch, without the pixels that nobody will look at."""

    cut: Cut
    plan: Plan


def part(pixels: Pixels, plan: Plan, preprocessing: Preprocessing) -> Part:
    """What a decoded image contributes; a large one is resized here, and its plan carried out but for that."""
    wanted = cut(pixels, plan.both, preprocessing.filter)
    if wanted.pixels[..., 0].size > LARGEST * preprocessing.height * preprocessing.width:
        across, down = (Axis(axis.outputs, axis.outputs, 0, axis.outputs) for axis in plan.both)
        return Part(Cut(window(pixels, plan.both, preprocessing.filter), 0, 0, (across, down)), plan)
    if wanted.pixels.size < pixels.size:  # the rest of the image is given up
        wanted = wanted._replace(pixels=wanted.pixels.copy())
    return Part(wanted, plan)


def bundle(parts: Sequence[Part], preprocessing: Preprocessing) -> Bundle:
    """The batch of one or more parts."""
    changes = np.array([_change(part.plan) for part in parts], CHANGE)
    return Bundle(pack_cuts([part.cut for part in parts], preprocessing.filter), preprocessing, changes)


def _change(plan: Plan) -> tuple[float, float, float, bool, bool, tuple[int, ...]]:
    hue, saturation, contrast = plan.colors or (0.0, 0.0, 0.0)
    return hue, saturation, 1 + contrast, plan.colors is not None, plan.mirrored, tuple(plan.erased)
