"""Passes that are replayed as CUDA graphs, where there is a GPU."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
import torch

from support.shared_data import photos
from support.step_options import StepOptions
from trt_cls.gpu import visible_gpu
from trt_cls.spec.experiment import (
    CosineLr,
    Experiment,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    Sgd,
    TrainConfig,
)
from trt_cls.spec.extensions import AdamW, Extensions, ModernOptimizer, ProgressiveResizing
from trt_cls.training.compute import choose_compute
from trt_cls.training.logs.console import Reporter
from trt_cls.training.run import train

if visible_gpu() is None:
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu

EXTENSIONS = {
    "plain": Extensions(),
    "many": Extensions(
        optimizer=ModernOptimizer(adamw=AdamW()),
        ema_decay=0.9,
        clip_grad_norm=1.0,
        drop_path=0.2,
        cutmix_alpha=1.0,
        progressive_resizing=ProgressiveResizing(delay_fraction=0.5, finetune_fraction=0.5),
    ),
}


def experiment(extensions: Extensions) -> Experiment:
    config = TrainConfig(
        train_dataset_path=str(photos()),
        val_dataset_path=str(photos()),
        batch_size_per_gpu=16,
        n_epochs=2,
        n_workers=0,  # a process takes longer to start than all steps
        optimizer=Optimizer(sgd=Sgd(momentum=0.9)),
        reg_config=RegConfig(type="None"),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=0.002)),
    )
    # dropout, statistics of batches, and with drop_path random branches
    model = ModelConfig(arch="efficientnet_b0", input_image_size="3,64,64", use_batch_norm=True)
    return Experiment(model_config=model, train_config=config, extensions=extensions)


@pytest.mark.parametrize("extensions", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_passes_end_in_the_same_weights(precision: str, extensions: Extensions, tmp_path: Path) -> None:
    asked = experiment(extensions)
    ends = [
        train(
            asked,
            tmp_path / f"{cuda_graphs}",
            device="cuda",
            precision=precision,
            cuda_graphs=cuda_graphs,
            reporter=Reporter(io.StringIO()),
        ).last.read_bytes()
        for cuda_graphs in (False, True)
    ]
    assert ends[0] == ends[1]


def test_passes_are_recorded_while_loaders_page_lock_memory() -> None:
    over, compute = threading.Event(), choose_compute("cuda", "bf16")

    def page_lock() -> None:
        kept = []
        while not over.is_set():
            kept.append(torch.empty(1024, pin_memory=True))  # as a loader's thread does for each batch

    thread = threading.Thread(target=page_lock)
    thread.start()
    try:
        learner = StepOptions().learner(compute, cuda_graphs=True)
        StepOptions().step(learner, StepOptions().batch(compute.device), 0)
    finally:
        over.set()
        thread.join()
    assert learner.metrics().images == 4
