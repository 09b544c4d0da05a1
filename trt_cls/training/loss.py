"""The training loss: cross-entropy with targets that are smoothed and mixed, weights of classes, and focal loss.

Does not know: batches, networks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trt_cls.data.folder import ImageFolder
from trt_cls.spec.extensions import ClassWeights


def class_weights(asked: ClassWeights, folder: ImageFolder) -> Tensor:
    """A weight for each class, float32 [classes], with mean 1 over the images of `folder`."""
    images = torch.from_numpy(folder.counts).double()
    effective = (1 - asked.beta**images) / (1 - asked.beta)
    weights = (effective if asked.method == "effective" else images) ** -asked.power
    return (weights * images.sum() / (weights * images).sum()).float()


def weights_text(weights: Tensor, folder: ImageFolder) -> str:
    """The smallest and the largest weight, for display."""
    counted = folder.counts
    ends = (
        f"{weights[label]:.3g} for {folder.classes[label]} ({counted[label]:,} images)"
        for label in (int(weights.argmin()), int(weights.argmax()))
    )
    return f"class weights: {' to '.join(ends)}"


def training_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, focal_gamma: float) -> Tensor:
    """The mean over the images of Σ over the classes of weight · target · (1 - probability)^gamma · -ln(probability).

    It is torch's CrossEntropyLoss(weight) for targets that are probabilities. That for class indices divides by the sum
    of the images' weights instead of their number, which would make a step depend on how images are split over batches
    and processes; the mean weight of all training images is 1.
    """
    if not focal_gamma:
        return functional.cross_entropy(logits, targets, weights)
    logs = functional.log_softmax(logits, dim=1)
    # where a probability is 1, a power below 1 would have an infinite slope
    unsure = (-logs.expm1()).clamp_min(torch.finfo(logs.dtype).tiny)
    parts = targets * unsure**focal_gamma * -logs
    return (parts if weights is None else parts * weights).sum(dim=1).mean()
