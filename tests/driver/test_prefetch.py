"""Packed batches on their way to the GPU: torch's streams and its memory played over those of the stand-in driver."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from driver import stand_in
from driver.stand_in import Driver
from support.pixel_reference import preprocessing_of
from support.shared_data import photos
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import TrainingLoader
from trt_cls.gpu import NON_BLOCKING
from trt_cls.preprocessing.cuda import CudaAugmentation
from trt_cls.spec.experiment import NO_EXTENSIONS, LrConfig, Optimizer, RegConfig, TrainConfig
from trt_cls.training import prefetch
from trt_cls.training.compute import Compute
from trt_cls.training.prefetch import open_augmentation, prefetched

stand_in.require()
pytestmark = pytest.mark.driver
COLOR = preprocessing_of("rgb", "bilinear", "center", "48x64", "caffe")
GRAY = preprocessing_of("gray", "bicubic", "none", "40x33", "torch")


class Stream:
    """torch.cuda.Stream over one of pycuda's."""

    def __init__(self, kernel: CudaAugmentation, stream: Any = None) -> None:
        self.kernel = kernel
        with kernel.current():
            self.own = stream or kernel.cuda.Stream(NON_BLOCKING)

    def record_event(self) -> Any:
        with self.kernel.current():
            return self.kernel.cuda.Event().record(self.own)

    def wait_event(self, event: Any) -> None:
        with self.kernel.current():
            self.own.wait_for_event(event)


class OnDevice(torch.Tensor):
    """A tensor in the driver's memory."""

    memory: Memory

    def new_empty(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> torch.Tensor:
        return self.memory.empty(shape, dtype)


class Memory:
    """torch's own: a block that was given up is given out again at once, to what comes later on the same stream.

    Another stream that still reads it must have been recorded, and is then waited for.
    """

    def __init__(self, kernel: CudaAugmentation, steps: Stream) -> None:
        self.kernel, self.steps = kernel, steps
        self.blocks: dict[int, Any] = {}
        self.free: list[int] = []
        self.pending: list[tuple[int, Any]] = []
        self.recorded: set[int] = set()
        self.given_again = 0
        self.streams: set[int] = set()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.streams.add(id(torch.cuda.current_stream()))
        size = int(np.prod(shape)) * dtype.itemsize
        with self.kernel.current():
            self.free += [address for address, event in self.pending if event.query()]
        self.pending = [(address, event) for address, event in self.pending if address not in self.free]
        address = next((block for block in self.free if self.blocks[block][1] >= size), None)
        if address is None:
            with self.kernel.current():
                made = self.kernel.cuda.mem_alloc(size)
            address = int(made)
            self.blocks[address] = made, size
        else:
            self.free.remove(address)
            self.given_again += 1
        content = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(content, self._given_up, address)
        tensor = torch.frombuffer(content, dtype=dtype).view(shape).as_subclass(OnDevice)
        tensor.memory = self
        return tensor

    def _given_up(self, address: int) -> None:
        if address not in self.blocks:
            return
        if address in self.recorded:
            self.recorded.remove(address)
            self.pending.append((address, self.steps.record_event()))
        else:
            self.free.append(address)

    def close(self) -> None:
        self.pending.clear()
        with self.kernel.current():
            self.blocks.clear()


class OnGpu:
    """`Compute` on a GPU, and those of torch's names that `prefetch` calls."""

    device = SimpleNamespace(type="cuda", index=0)

    def __init__(self, kernel: CudaAugmentation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = kernel
        self.copies, self.steps = Stream(kernel), Stream(kernel)
        self.memory = Memory(kernel, self.steps)
        self._current = self.steps
        self._kept: list[Any] = []
        monkeypatch.setattr(prefetch, "_copies", lambda index: self.copies)
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: Stream(kernel, kernel.stream))
        monkeypatch.setattr(torch.cuda, "stream", self._entered)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self._current)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream))

    @contextmanager
    def _entered(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def _record(self, tensor: torch.Tensor, stream: Stream) -> None:
        assert stream is self.steps
        self.memory.recorded.add(tensor.data_ptr())

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._current is self.copies, "on another stream the steps, or the kernel, would wait for the copy"
        copy = self.memory.empty(tuple(tensor.shape), tensor.dtype)
        with self.kernel.current():
            host = self.kernel.cuda.pagelocked_empty(tensor.nbytes, np.uint8)
            host[:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            self.kernel.cuda.memcpy_htod_async(copy.data_ptr(), host, self._current.own)
        self._kept.append(host)
        return copy

    targets = moved

    def images(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def step(self, tensor: torch.Tensor) -> np.ndarray:
        """Queues what a step does, which here is to bring the numbers to the host."""
        with self.kernel.current():
            host = self.kernel.cuda.pagelocked_empty(tuple(tensor.shape), np.float32)
            self.kernel.cuda.memcpy_dtoh_async(host, tensor.data_ptr(), self.steps.own)
        return host

    def close(self) -> None:
        with self.kernel.current():
            for stream in (self.copies, self.steps):
                stream.own.synchronize()
            self._kept.clear()
        self.memory.close()


@pytest.fixture(scope="module")
def folder() -> ImageFolder:
    """Forty photographs."""
    found = image_folder(photos())
    return ImageFolder(found.root, found.samples[::4][:40], found.classes)


def loader(folder: ImageFolder, preprocessing: Any, *, pack: bool) -> TrainingLoader:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    fields = {"batch_size_per_gpu": 5, "n_workers": 0, "mixup_alpha": 0.0}
    train_config = TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)
    return TrainingLoader(folder, preprocessing, train_config, extensions=NO_EXTENSIONS, pack=pack)


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY], ids=["color", "gray"])
def test_steps_see_the_batches_of_the_cpu_whenever_they_run(
    driver: Driver, folder: ImageFolder, preprocessing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = driver.count("blocking")
    with closing(CudaAugmentation(preprocessing)) as kernel, closing(OnGpu(kernel, monkeypatch)) as gpu:
        assert driver.count("blocking") == blocking, "each launch would wait for the steps on the default stream"
        batches = prefetched(loader(folder, preprocessing, pack=True).epoch(0), gpu, kernel)
        found = [(gpu.step(batch.images), gpu.step(batch.targets)) for batch in batches]
        with kernel.current():
            gpu.steps.own.synchronize()
        found = [(images.copy(), targets.copy()) for images, targets in found]
        assert gpu.memory.given_again > 0
    for (images, targets), expected in zip(found, loader(folder, preprocessing, pack=False).epoch(0), strict=True):
        np.testing.assert_array_equal(images.view(np.uint32), expected.images.numpy().view(np.uint32))
        np.testing.assert_array_equal(targets.view(np.uint32), expected.targets.numpy().view(np.uint32))


def test_a_batch_may_be_larger_than_what_one_launch_takes(
    driver: Driver, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_cls.preprocessing.cuda.MOST_IMAGES", 2)
    with closing(CudaAugmentation(COLOR)) as kernel, closing(OnGpu(kernel, monkeypatch)) as gpu:
        batch = next(prefetched(loader(folder, COLOR, pack=True).epoch(0), gpu, kernel))
        images = gpu.step(batch.images)
        with kernel.current():
            gpu.steps.own.synchronize()
        images = images.copy()
    np.testing.assert_array_equal(images, next(loader(folder, COLOR, pack=False).epoch(0)).images.numpy())


def test_a_batch_that_a_traceback_keeps_is_no_memory_of_a_kernels_stream(
    driver: Driver, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch asks the stream that memory was taken on when it is given back: the kernel's is gone by then."""
    with closing(CudaAugmentation(COLOR)) as kernel, closing(OnGpu(kernel, monkeypatch)) as gpu:
        batch = next(prefetched(loader(folder, COLOR, pack=True).epoch(0), gpu, kernel))
        assert isinstance(batch.images, OnDevice)
        assert gpu.memory.streams == {id(gpu.copies)}


def test_batches_are_copied_on_one_stream_for_the_life_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    prefetch._copies.cache_clear()
    try:
        assert prefetch._copies(0) is prefetch._copies(0)
        assert made == [0]
    finally:
        prefetch._copies.cache_clear()


@stand_in.lazy
def test_the_next_batch_is_under_way_when_one_is_handed_over(
    driver: Driver, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(CudaAugmentation(COLOR)) as kernel, closing(OnGpu(kernel, monkeypatch)) as gpu:
        seen = []  # kept, as memory that is freed lets all streams run
        for number, batch in enumerate(prefetched(loader(folder, COLOR, pack=True).epoch(0), gpu, kernel)):
            seen.append(gpu.step(batch.images))
            with kernel.current():
                gpu.steps.own.synchronize()
            assert np.isfinite(seen[-1]).all()
            assert (driver.count("queued") > 0) == (number + 1 < len(folder.samples) / 5)
        with kernel.current():
            seen.clear()


def test_where_a_gpu_and_its_tools_are_there_the_kernel_is_opened(driver: Driver) -> None:
    kernel = open_augmentation(Compute((torch.device("cuda", 0),), "fp32", "a test's"), COLOR, NO_EXTENSIONS)
    assert kernel is not None
    assert kernel.shape == (3, 48, 64)
    kernel.close()
