"""Loss and accuracy on the validation images: all of them, as they are, the network in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from trt_cls.data.stream import Batch
from trt_cls.distributed.processes import Processes
from trt_cls.training.broken import BrokenImages
from trt_cls.training.compute import Compute


def validate(
    model: nn.Module, batches: Iterable[Batch], compute: Compute, broken: BrokenImages, processes: Processes
) -> tuple[float, float]:
    """Accuracy and cross-entropy (without smoothing or penalty) over all images that can be decoded; notes the others.

    `batches` are this process's share; the result is that of all of them.

    Raises:
        DataError: a whole class can't be decoded.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=compute.last)
    with evaluating(model), torch.no_grad():
        for batch in batches:
            broken.add(batch.skipped)
            if not len(batch.images):
                continue
            images = compute.images(torch.from_numpy(batch.images))
            labels = torch.tensor([sample.label for sample in batch.samples], device=compute.last)
            with compute.autocast():
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            correct = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([loss, correct.to(loss.dtype), torch.full_like(loss, len(labels))]).double()
    broken.share(processes)
    loss_sum, correct_sum, seen = (sum(column) for column in zip(*processes.gather(sums.tolist()), strict=True))
    return correct_sum / seen, loss_sum / seen


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, back in training mode afterwards."""
    model.eval()
    try:
        yield
    finally:
        model.train()
