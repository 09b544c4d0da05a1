"""Moves each batch to the GPU while the step before it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from trt_cls.data.loader import TrainingBatch
from trt_cls.training.compute import Compute


def prefetched(batches: Iterable[TrainingBatch], compute: Compute) -> Iterator[TrainingBatch]:
    """`batches` on the device of `compute`, one of them ahead; on a CPU they are as they were."""
    if compute.device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]
    ahead: tuple[TrainingBatch, torch.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = TrainingBatch(compute.images(batch.images), compute.targets(batch.targets), batch.skipped)
            copied = copies.record_event()
        if ahead is not None:
            yield _handed_over(*ahead)
        ahead = moved, copied
    if ahead is not None:
        yield _handed_over(*ahead)


def _handed_over(batch: TrainingBatch, copied: torch.Event) -> TrainingBatch:
    """`batch` for the current stream, which waits for its copy, and not for the one after."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch
