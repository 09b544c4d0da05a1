"""A training step queues its work on the GPU and does not wait for it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.profiler import profile

from support.host_syncs import GPU, HostSyncs, meta_gpu
from support.step_options import MODEL, OPTIMIZERS, OTHERS, TRANSFORMER, StepOptions
from support.tiny_models import CONTRACT
from trt_cls.data.augmentation import Box, Mixing, mixup_shares
from trt_cls.data.loader import PackedBatch, TrainingBatch
from trt_cls.models import build
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.models.int8_layers import rounded_by_output
from trt_cls.spec.extensions import Distillation, Extensions
from trt_cls.training.learner import EpochMeans, Teacher
from trt_cls.training.logs.console import Reporter
from trt_cls.training.prefetch import _moved


def waits(options: StepOptions, precision: str = "bf16", teacher: Teacher | None = None) -> list[str]:
    """For what two steps would wait, the second of which updates weights in any case."""
    with meta_gpu(precision) as compute:
        learner, batch = options.learner(compute, teacher), options.batch(GPU)
        with HostSyncs() as found:
            for number in range(2):
                options.step(learner, batch, number)
        with HostSyncs() as read:
            learner.metrics()
    assert read.names  # the one that a log may have: the count can fail
    return found.names


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_waits(name: str, precision: str) -> None:
    assert waits(OPTIMIZERS[name], precision) == []


@pytest.mark.parametrize("name", OTHERS)
def test_no_loss_and_no_step_option_waits(name: str) -> None:
    assert waits(OTHERS[name]) == []


def test_a_transformer_with_all_of_its_options_does_not_wait() -> None:
    pytest.importorskip("timm")
    assert waits(TRANSFORMER) == []


def test_a_checkpoint_teaches_on_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, build(CONTRACT.model, 3), CONTRACT)
    with meta_gpu() as compute:
        teacher = Teacher(Distillation(teacher=str(path)), CONTRACT, replace(compute, devices=(torch.device("cpu"),)))
    engine: Any = teacher._engine
    engine._module, engine._device = engine._module.to(GPU), "meta"
    extensions = Extensions(distillation=Distillation(teacher=str(path)))
    assert waits(StepOptions(extensions, model=CONTRACT.model), teacher=teacher) == []


def test_batches_are_mixed_and_moved_without_waiting() -> None:
    shares = torch.from_numpy(mixup_shares(4, 0.4, Random(1)))
    targets, images = torch.rand(4, 3), torch.rand(4, *MODEL.input_shape)
    kernel: Any = SimpleNamespace(shape=MODEL.input_shape, launch=lambda *_: None)
    with meta_gpu() as compute, HostSyncs() as found:
        _moved(TrainingBatch(images, targets, ()), compute, None)
        for mixing in (Mixing(shares), Mixing(box=Box(1, 1, 5, 6), kept=0.9)):
            packed = PackedBatch(torch.zeros(64, dtype=torch.uint8), (0,), 4, mixing, targets, ())
            assert _moved(packed, compute, kernel).images.device == GPU
    assert found.names == []


def test_weights_are_rounded_to_int8_without_reading_their_scales() -> None:
    # these reads are inside of torch's operator
    weight = torch.randn(4, 3, 3, 3)
    with profile(use_kineto=False) as ours:
        found = rounded_by_output(weight)
    steps, zeros = weight.abs().amax(dim=(1, 2, 3)) / 127, torch.zeros(4, dtype=torch.int32)
    with profile(use_kineto=False) as torchs:
        expected = torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -127, 127)
    assert "aten::item" in {event.name for event in torchs.function_events}
    assert "aten::item" not in {event.name for event in ours.function_events}
    assert torch.equal(found, expected)


def test_many_steps_read_the_metrics_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))  # a step a second
    monkeypatch.setattr("trt_cls.training.logs.console.time.monotonic", lambda: next(clock))
    reporter, read = Reporter(io.StringIO()), []
    reporter.epoch_started(1, 1, 90, 0)
    for step in range(90):
        reporter.step_done(step, 4, lambda: read.append(0) or EpochMeans(1.0, 1.0, 4))
    assert len(read) == 3  # of 30 seconds
