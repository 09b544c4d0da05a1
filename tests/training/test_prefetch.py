"""Packed batches with the kernel played by the CPU, equal to whole ones; their way to a GPU is in tests/driver."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support import cuda_on_cpu
from support.pixel_reference import preprocessing_of
from support.shared_data import photos
from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import PackedBatch, TrainingBatch, TrainingLoader, pinned
from trt_cls.distributed.processes import ALONE
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    Experiment,
    Extensions,
    LrConfig,
    Optimizer,
    RandAugment,
    RegConfig,
    TrainConfig,
)
from trt_cls.spec.extensions import RandomResizedCrop
from trt_cls.training.compute import Compute, choose_compute
from trt_cls.training.prefetch import open_augmentation, prefetched
from trt_cls.training.run import train
from trt_cls.training.setup import open_setup, supported

COLOR = preprocessing_of("rgb", "bilinear", "center", "48x64", "caffe")
GRAY = preprocessing_of("gray", "bicubic", "none", "40x33", "torch")
ON_GPU = Compute((torch.device("cuda", 0),), "fp32", "a test's")


@pytest.fixture(scope="module")
def folder() -> ImageFolder:
    """Thirty photographs."""
    found = image_folder(photos())
    return ImageFolder(found.root, found.samples[::5][:30], found.classes)


def loader(
    folder: ImageFolder, preprocessing: Preprocessing, extensions: Extensions, *, pack: bool, **given: Any
) -> TrainingLoader:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    fields = {"batch_size_per_gpu": 8, "n_workers": 0, **given}
    train_config = TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)
    return TrainingLoader(folder, preprocessing, train_config, extensions=extensions, pack=pack)


def check_same(found: list[TrainingBatch], expected: list[TrainingBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.images.numpy().view(np.uint32), other.images.numpy().view(np.uint32))
        np.testing.assert_array_equal(one.targets.numpy().view(np.uint32), other.targets.numpy().view(np.uint32))
        assert one.skipped == other.skipped


EXTENSIONS = {
    "plain": NO_EXTENSIONS,
    "erasing": Extensions(random_erasing=0.5),
    "cutmix": Extensions(cutmix_alpha=1.0, random_erasing=0.3),
    "shift": Extensions(crop_padding=30, random_erasing=0.5),
    "resized crop": Extensions(random_resized_crop=RandomResizedCrop(), repeated_augment=2),
}


@pytest.mark.parametrize("given", [{}, {"mixup_alpha": 0.0}, {"enable_random_crop": False}], ids=str)
@pytest.mark.parametrize("extensions", list(EXTENSIONS))
@pytest.mark.parametrize("preprocessing", [COLOR, GRAY], ids=["color", "gray"])
def test_an_epoch_of_packed_batches_is_that_of_whole_ones(
    folder: ImageFolder, preprocessing: Preprocessing, extensions: str, given: dict[str, Any]
) -> None:
    asked = EXTENSIONS[extensions]
    if asked.random_resized_crop or asked.crop_padding:
        given = {**given, "enable_random_crop": False}
    packed = loader(folder, preprocessing, asked, pack=True, **given).epoch(3)
    kernel = cuda_on_cpu.Augmentation(preprocessing)
    found = list(prefetched(packed, choose_compute("cpu", "fp32"), kernel))
    check_same(found, list(loader(folder, preprocessing, asked, pack=False, **given).epoch(3)))
    assert kernel.batches == [8, 8, 8, 6]


def test_packed_batches_come_whole_out_of_other_processes(folder: ImageFolder) -> None:
    alone, two = (list(loader(folder, COLOR, NO_EXTENSIONS, pack=True, n_workers=n).epoch(0)) for n in (0, 2))
    for one, other in zip(two, alone, strict=True):
        assert torch.equal(one.bundle, other.bundle)
        assert torch.equal(one.mixing.shares, other.mixing.shares)
        assert (one.starts, one.count) == (other.starts, other.count)


def test_a_bundle_is_smaller_than_the_tensor_that_it_becomes(folder: ImageFolder) -> None:
    preprocessing = preprocessing_of("rgb", "bilinear", "center", "224x224", "torch")
    packed = list(loader(folder, preprocessing, NO_EXTENSIONS, pack=True).epoch(0))
    tensors = sum(batch.count for batch in packed) * 3 * 224 * 224 * 4
    assert sum(batch.bundle.nbytes for batch in packed) < 0.5 * tensors


def test_broken_images_are_left_out_and_a_batch_of_them_is_empty(folder: ImageFolder, tmp_path: Path) -> None:
    samples = [replace(sample, path=tmp_path / "none.jpg") for sample in folder.samples]
    kernel, compute = cuda_on_cpu.Augmentation(COLOR), choose_compute("cpu", "fp32")
    for chosen in (samples[:8], [*samples[:3], *folder.samples[:5]]):
        broken = ImageFolder(folder.root, tuple(chosen), folder.classes)
        found = list(prefetched(loader(broken, COLOR, NO_EXTENSIONS, pack=True).epoch(0), compute, kernel))
        check_same(found, list(loader(broken, COLOR, NO_EXTENSIONS, pack=False).epoch(0)))
    assert kernel.batches == [5]


def test_a_training_with_packed_batches_ends_as_one_without(
    experiment: Callable[..., Experiment], tmp_path: Path, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(extensions=Extensions(random_erasing=0.3, cutmix_alpha=1.0, average_checkpoints=2))
    expected = train(asked, tmp_path / "whole", device="cpu", reporter=quiet())
    kernels = []

    def opened(compute: Compute, preprocessing: Preprocessing, extensions: Extensions) -> cuda_on_cpu.Augmentation:
        kernels.append(cuda_on_cpu.Augmentation(preprocessing))
        return kernels[-1]

    monkeypatch.setattr("trt_cls.training.setup.open_augmentation", opened)
    found = train(asked, tmp_path / "packed", device="cpu", reporter=quiet())
    assert kernels[0].batches == [8, 8, 5] * 3, "two epochs, and once more for the averaged checkpoint"
    assert found.last.read_bytes() == expected.last.read_bytes()
    assert found.averaged.path.read_bytes() == expected.averaged.path.read_bytes()


def test_on_a_cpu_nothing_is_packed_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert open_augmentation(choose_compute("cpu", "fp32"), COLOR, NO_EXTENSIONS) is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("extensions", "reported"),
    [
        (NO_EXTENSIONS, "on the CPU, with the same result: preprocessing on the GPU needs the package pycuda"),
        (Extensions(rand_augment=RandAugment()), "on the CPU: the GPU's kernel has no rand_augment"),
        (Extensions(trivial_augment=True), "on the CPU: the GPU's kernel has no trivial_augment"),
    ],
)
def test_one_line_says_why_a_gpu_does_not_augment(
    extensions: Extensions, reported: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu, "visible_gpu", lambda: gpu.Gpu("NVIDIA Test", "8.9"))
    with caplog.at_level(logging.WARNING):
        assert open_augmentation(ON_GPU, COLOR, extensions) is None
    (message,) = caplog.messages
    assert reported in message


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_for_the_chosen_device_and_not_for_one_that_is_there(
    device: str, pinned: bool, experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensors.append(tensor) or tensor)
    monkeypatch.setattr("trt_cls.training.setup.open_augmentation", lambda *given: None)
    compute = ON_GPU if device == "cuda" else choose_compute("cpu", "fp32")
    asked = experiment()
    setup = open_setup(asked, supported(asked, resume=False, init_epoch=1), None, ALONE, compute)
    next(iter(setup.loader.epoch(0)))
    assert bool(tensors) == pinned


def test_pinning_leaves_no_tensor_of_a_packed_batch_behind(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensors.append(tensor.data_ptr()) or tensor)
    batch = next(loader(folder, COLOR, NO_EXTENSIONS, pack=True).epoch(0))
    assert isinstance(batch, PackedBatch)
    pinned(batch)
    assert set(tensors) == {tensor.data_ptr() for tensor in (batch.bundle, batch.mixing.shares, batch.targets)}
