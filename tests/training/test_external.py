from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import Experiment, ModelConfig
from trt_cls.training.run import train


def test_a_network_of_another_library_trains_from_its_own_weights(
    experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.mobilenet_v3_small(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    model = ModelConfig(arch="torchvision/mobilenet_v3_small", input_image_size="3,32,32")
    reporter = quiet()
    asked = experiment(model=model, n_epochs=1, pretrained_model_path=str(tmp_path / "mobilenet.pth"))
    result = train(asked, tmp_path / "results", device="cpu", reporter=reporter)
    assert result.last.name == "torchvision_mobilenet_v3_small_001.safetensors"
    assert any("the head is newly initialized" in line for line in reporter.lines)
    weights, first = load_checkpoint(result.last).module.state_dict(), theirs.state_dict()
    moved = (weights["features.0.0.weight"] - first["features.0.0.weight"]).abs().max()
    assert 0 < moved < 0.1
