"""Progressive resizing: a training begins with small images, which take less time, and ends with whole ones.

After fast.ai, with the schedule and the names of Composer's ProgressiveResizing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_cls.errors import RequestError
from trt_cls.spec.extensions import ProgressiveResizing

Size = tuple[int, int]
"""Height and width in pixels."""


def size_at(progress: float, whole: Size, asked: ProgressiveResizing | None) -> Size:
    """The size of the images at `progress`, 0 to 1, of a training of a network for images of the size `whole`.

    Each side is the nearest multiple of size_increment, at least one and at most the whole side.
    """
    if asked is None:
        return whole
    ramp, step = 1 - asked.finetune_fraction - asked.delay_fraction, asked.size_increment
    if progress >= 1 - asked.finetune_fraction:
        return whole
    grown = max(0.0, progress - asked.delay_fraction) / ramp if ramp > 0 else 0.0
    scale = asked.initial_scale + (1 - asked.initial_scale) * grown
    height, width = (min(side, max(step, round(side * scale / step) * step)) for side in whole)
    return height, width


def resized(images: Tensor, size: Size) -> Tensor:
    """Images [n,C,H,W] in another size; bilinear, and averaged where they shrink, as torchvision and Pillow do it."""
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def require_any_size(model: nn.Module, whole: tuple[int, int, int], asked: ProgressiveResizing, arch: str) -> None:
    """Refuses a network, as yet on the CPU, for images [C,H,W] of the size `whole`, that does not take smaller ones.

    The two smallest sizes are tried: a network may take multiples of its patches alone.

    Raises:
        RequestError: it is made for one size, as a vision transformer is.
    """
    training, size = model.training, whole[1:]
    try:
        with torch.no_grad():
            for size in sorted({size_at(share / 1000, whole[1:], asked) for share in range(1000)})[:2]:
                model.eval()(torch.zeros(1, whole[0], *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"extensions.progressive_resizing: {arch} does not take images of {size[1]}×{size[0]} pixels ({reason}); "
            "expected a network for images of any size; leave the block out, or begin with larger images"
        ) from error
    finally:
        model.train(training)
