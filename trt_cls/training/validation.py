"""Loss and accuracy on the validation images: all of them, as they are, the network in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from trt_cls.data.stream import Batch
from trt_cls.training.broken import BrokenImages
from trt_cls.training.compute import Compute


def validate(model: nn.Module, batches: Iterable[Batch], compute: Compute, broken: BrokenImages) -> tuple[float, float]:
    """Accuracy and cross-entropy (without smoothing or penalty) over all images that can be decoded; notes the others.

    Raises:
        DataError: a whole class can't be decoded.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=compute.device)
    with _evaluating(model), torch.no_grad():
        for batch in batches:
            broken.add(batch.skipped)
            if not len(batch.images):
                continue
            images = torch.from_numpy(batch.images).to(compute.device)
            labels = torch.tensor([sample.label for sample in batch.samples], device=compute.device)
            with compute.autocast():
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            correct = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([loss, correct.to(loss.dtype), torch.full_like(loss, len(labels))]).double()
    loss_sum, correct_sum, seen = sums.tolist()
    return correct_sum / seen, loss_sum / seen


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
