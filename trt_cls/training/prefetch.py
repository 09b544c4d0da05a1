"""Moves each batch to the GPU while the step before it computes; what the loader packed is made into images there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from trt_cls.contract import Preprocessing
from trt_cls.data.loader import PackedBatch, TrainingBatch
from trt_cls.data.transforms import CHANGES
from trt_cls.errors import DeviceError, MissingDependency
from trt_cls.preprocessing.cuda import CudaAugmentation
from trt_cls.spec.experiment import Extensions
from trt_cls.training.compute import Compute

_log = logging.getLogger(__name__)


def open_augmentation(
    compute: Compute, preprocessing: Preprocessing, extensions: Extensions
) -> CudaAugmentation | None:
    """The kernel that makes packed batches into images, to be closed; None where the loader's processes do that."""
    if compute.device.type != "cuda":
        return None
    lacking = [name for name in CHANGES if getattr(extensions, name)]
    if lacking:
        _log.warning("training images are augmented on the CPU: the GPU's kernel has no %s", " and ".join(lacking))
        return None
    try:
        return CudaAugmentation(preprocessing, compute.device.index)
    except (DeviceError, MissingDependency) as error:
        _log.warning("training images are augmented on the CPU, with the same result: %s", error)
        return None


def prefetched(
    batches: Iterable[TrainingBatch | PackedBatch], compute: Compute, kernel: CudaAugmentation | None = None
) -> Iterator[TrainingBatch]:
    """`batches` on the device of `compute`, one of them ahead; on a CPU they are as they were.

    `kernel` is for packed ones.
    """
    if compute.device.type != "cuda":
        for batch in batches:
            yield batch if isinstance(batch, TrainingBatch) else _moved(batch, compute, kernel)
        return
    copies = _copies(compute.device.index)
    ahead: tuple[TrainingBatch, torch.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = _moved(batch, compute, kernel)
            copied = copies.record_event()
        if ahead is not None:
            yield _handed_over(*ahead)
        ahead = moved, copied
    if ahead is not None:
        yield _handed_over(*ahead)


@cache
def _copies(device: int) -> torch.cuda.Stream:
    """A stream beside that of the steps, one of torch's own, which live as long as the process.

    torch asks the streams that used a batch when its memory is given back: a traceback may keep one for longer than
    the training, and its kernel's stream, lived.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _moved(batch: TrainingBatch | PackedBatch, compute: Compute, kernel: CudaAugmentation | None) -> TrainingBatch:
    """Queues all that brings `batch` to the device."""
    images = batch.images if isinstance(batch, TrainingBatch) else _augmented(batch, compute, kernel)
    return TrainingBatch(compute.images(images), compute.targets(batch.targets), batch.skipped)


def _augmented(batch: PackedBatch, compute: Compute, kernel: CudaAugmentation | None) -> torch.Tensor:
    """The images of `batch`; on a GPU queued on the current stream, which waits for the kernel's."""
    if kernel is None:
        raise TypeError("packed batches, and no kernel to make images of them")
    bundle = compute.moved(batch.bundle)
    images = bundle.new_empty((batch.count, *kernel.shape), dtype=torch.float32)
    if batch.count:
        with _in_turn(compute, kernel):
            kernel.launch(bundle.data_ptr(), batch.starts, batch.count, images.data_ptr())
    return batch.mixing.images(images)


@contextmanager
def _in_turn(compute: Compute, kernel: CudaAugmentation) -> Iterator[None]:
    """Makes the kernel's stream wait for the current stream, and afterwards the current stream for the kernel's.

    So no memory of torch's ever belongs to the kernel's stream, which is gone when the kernel is closed.
    """
    if compute.device.type != "cuda":
        yield
        return
    copies = _copies(compute.device.index)
    own: Any = torch.cuda.ExternalStream(kernel.stream.handle, compute.device)  # type: ignore[no-untyped-call]
    own.wait_event(copies.record_event())
    yield
    copies.wait_event(own.record_event())


def _handed_over(batch: TrainingBatch, copied: torch.Event) -> TrainingBatch:
    """`batch` for the current stream, which waits for its copy, and not for the one after."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch
