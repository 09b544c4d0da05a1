"""What only a GPU can show of training: its kernel's images there, between torch's streams, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.pixel_reference import preprocessing_of
from support.shared_data import photos
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import TrainingBatch, TrainingLoader
from trt_cls.export.export import export
from trt_cls.gpu import visible_gpu
from trt_cls.models import build
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    Quantization,
    RegConfig,
    Sgd,
    TrainConfig,
)
from trt_cls.training.compute import choose_compute
from trt_cls.training.learner import Learner
from trt_cls.training.prefetch import open_augmentation, prefetched
from trt_cls.training.run import train

if visible_gpu() is None or find_spec("pycuda") is None:
    pytest.skip("no NVIDIA GPU, or no pycuda", allow_module_level=True)  # one line of the report

pytestmark = pytest.mark.gpu
EXTENSIONS = [NO_EXTENSIONS, Extensions(random_erasing=0.5, cutmix_alpha=1.0)]
DESCRIPTIONS = [
    preprocessing_of("rgb", "bilinear", "center", "224x224", "torch"),
    preprocessing_of("rgb", "bicubic", "none", "160x112", "caffe"),
    preprocessing_of("gray", "bicubic", "center", "75x130", "caffe"),
]
SHIFTED = Extensions(crop_padding=8, random_erasing=0.5)


def config(folder: ImageFolder, extensions: Extensions = NO_EXTENSIONS) -> TrainConfig:
    return TrainConfig(
        train_dataset_path=str(folder.root),
        val_dataset_path=str(folder.root),
        batch_size_per_gpu=16,
        n_epochs=1,
        n_workers=2,
        enable_random_crop=not extensions.crop_padding,
        optimizer=Optimizer(sgd=Sgd()),
        reg_config=RegConfig(type="None"),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=0.02)),
    )


def whole(folder: ImageFolder, preprocessing: Preprocessing, extensions: Extensions) -> Iterator[TrainingBatch]:
    asked = replace(config(folder, extensions), n_workers=0)
    yield from TrainingLoader(folder, preprocessing, asked, extensions=extensions).epoch(1)


@pytest.mark.parametrize("extensions", [*EXTENSIONS, SHIFTED], ids=["mixup", "erasing and cutmix", "shift and erasing"])
@pytest.mark.parametrize("preprocessing", DESCRIPTIONS, ids=["color", "bicubic", "gray"])
def test_batches_are_those_of_the_cpu_to_the_bit(preprocessing: Preprocessing, extensions: Extensions) -> None:
    folder = image_folder(photos())
    compute = choose_compute("cuda", "fp32")
    kernel = open_augmentation(compute, preprocessing, extensions)
    assert kernel is not None, "the log says why"
    packed = TrainingLoader(folder, preprocessing, config(folder, extensions), extensions=extensions, pack=True)
    with closing(kernel):
        found = []
        for batch in prefetched(packed.epoch(1), compute, kernel):
            # what a step does meanwhile, on the stream that it does it on
            torch.randn(1024, 1024, device="cuda") @ torch.randn(1024, 1024, device="cuda")
            found.append((batch.images.cpu().contiguous(), batch.targets.cpu()))
    for (images, targets), expected in zip(found, whole(folder, preprocessing, extensions), strict=True):
        np.testing.assert_array_equal(images.numpy().view(np.uint32), expected.images.numpy().view(np.uint32))
        np.testing.assert_array_equal(targets.numpy().view(np.uint32), expected.targets.numpy().view(np.uint32))


def test_an_epoch_ends_in_the_same_weights_wherever_images_are_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(photos())
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,64,64", use_batch_norm=True)
    asked = Experiment(model_config=model, train_config=config(folder), extensions=EXTENSIONS[1])
    by_gpu = train(asked, tmp_path / "gpu", device="cuda", precision="fp32")

    def none(*given: Any) -> None:
        return None

    monkeypatch.setattr("trt_cls.training.setup.open_augmentation", none)
    by_cpu = train(asked, tmp_path / "cpu", device="cuda", precision="fp32")
    assert by_gpu.last.read_bytes() == by_cpu.last.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_for_int8_ends_the_same_each_time_and_its_file_answers_as_it(precision: str, tmp_path: Path) -> None:
    folder = image_folder(photos())
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,64,64", use_batch_norm=True)
    before = train(Experiment(model_config=model, train_config=config(folder)), tmp_path / "before", device="cuda")
    further = replace(config(folder), pretrained_model_path=str(before.last))
    quantized = Extensions(quantization=Quantization())
    asked = Experiment(model_config=model, train_config=further, extensions=quantized)
    one, two = (train(asked, tmp_path / name, device="cuda", precision=precision) for name in ("one", "two"))
    assert one.last.read_bytes() == two.last.read_bytes()
    written = export(one.last, tmp_path / "model.onnx", images=folder.root, builder="none")  # refused if it does not
    assert written.precision == "int8"


@pytest.mark.parametrize("extensions", [NO_EXTENSIONS, Extensions(ema_decay=0.9, clip_grad_norm=1.0, focal_gamma=2.0)])
def test_a_step_does_not_wait_for_the_gpu(extensions: Extensions) -> None:
    # the driver's own account, of what is called within torch's operators too; see tests/training/test_host_syncs.py
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
    asked = TrainConfig(
        train_dataset_path="",
        val_dataset_path="",
        batch_size_per_gpu=4,
        optimizer=Optimizer(sgd=Sgd(momentum=0.9)),
        reg_config=RegConfig(type="None"),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=0.02)),
    )
    learner = Learner(build(model, 3), asked, choose_compute("cuda", "auto"), extensions=extensions)
    batch = TrainingBatch(torch.rand(4, 3, 32, 32).cuda(), torch.eye(3)[[0, 1, 2, 0]].cuda(), ())
    for number in range(3):  # the first ones make handles and workspaces
        torch.cuda.set_sync_debug_mode("error" if number == 2 else "default")
        try:
            learner.step(batch, number, 0.02)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert learner.metrics().images == 12
