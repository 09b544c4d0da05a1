"""How the images of a batch are mixed with each other: drawn beforehand, done wherever the images are.

Takes torch's tensors, on any device, and does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_cls.data.augmentation import Box

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """Mixup where there are `shares`, cutmix where there is a `box`, nothing without both."""

    shares: Tensor | None = None
    """Of itself that each image keeps, [n]; the rest comes from the one at the mirrored place in the batch."""
    box: Box | None = None
    """What each image takes from the one before it."""
    kept: float = 1.0
    """The share of an image beside `box`."""

    def pin_memory(self) -> Mixing:
        """The same in page-locked memory."""
        return self if self.shares is None else Mixing(self.shares.pin_memory())

    def images(self, images: Tensor) -> Tensor:
        """`images`, [n,C,H,W], mixed; they may be changed in place."""
        if self.shares is not None:
            return _mixed(images, self.shares.to(images.device, non_blocking=True)[:, None, None, None])
        if self.box is not None:
            left, top, right, bottom = self.box
            images[..., top:bottom, left:right] = images[..., top:bottom, left:right].roll(1, 0)
        return images

    def targets(self, targets: Tensor) -> Tensor:
        """`targets`, [n,classes], mixed as the images are."""
        if self.shares is not None:
            return _mixed(targets, self.shares[:, None])
        if self.box is not None:
            return targets.roll(1, 0) * (1.0 - self.kept) + targets * self.kept
        return targets


def _mixed(rows: Tensor, shares: Tensor) -> Tensor:
    """In four operations that each round for themselves, so that every device gives the same."""
    return (rows * shares).add_(rows.flip(0).mul_(1 - shares))
