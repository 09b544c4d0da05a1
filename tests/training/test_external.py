from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.models.network import SampleDropout
from trt_cls.spec.experiment import Experiment, Extensions, ModelConfig, RegConfig
from trt_cls.spec.extensions import AdamW, ModernOptimizer
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted


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


VIT = ModelConfig(arch="timm/test_vit", input_image_size="3,32,32")


def test_drop_path_is_the_library_s_own() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("test_vit", img_size=32, num_classes=3, drop_path_rate=0.2)
    network = build(VIT, 3, drop_path=0.2)

    def probabilities(model: Any) -> list[float]:
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]

    assert probabilities(network) == probabilities(theirs)
    assert max(probabilities(network)) == pytest.approx(0.2)
    efficientnet = build(ModelConfig(arch="torchvision/efficientnet_b0", input_image_size="3,32,32"), 3, drop_path=0.4)
    assert (
        max(getattr(module, "p", 0.0) for name, module in efficientnet.named_modules() if "stochastic" in name) > 0.35
    )
    with pytest.raises(RequestError, match=r"extensions\.drop_path: 0\.2, but torchvision/resnet18 has no stochastic"):
        build(ModelConfig(arch="torchvision/resnet18", input_image_size="3,32,32"), 3, drop_path=0.2)


def test_an_efficientnet_of_our_own_drops_its_last_branch_as_often_as_asked() -> None:
    config = ModelConfig(arch="efficientnet_b0", input_image_size="3,32,32")

    def rates(drop_path: float) -> list[float]:
        with torch.device("meta"):
            network = build(config, 3, drop_path=drop_path)
        return [layer.rate for layer in network.children() if isinstance(layer, SampleDropout)]

    ours, tao_s = rates(0.4), rates(0.0)
    assert max(ours) == ours[-1] == pytest.approx(0.4)
    assert ours == pytest.approx([rate * 0.4 / tao_s[-1] for rate in tao_s])


def test_a_resumed_training_with_gradient_checkpointing_gives_the_numbers_of_one_without(
    experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = pytest.importorskip("timm.models.vision_transformer")
    real, recomputed = transformer.checkpoint_seq, []
    monkeypatch.setattr(transformer, "checkpoint_seq", lambda *given: recomputed.append(1) or real(*given))
    plain = Extensions(drop_path=0.3, optimizer=ModernOptimizer(adamw=AdamW()), layer_decay=0.7)
    given: dict[str, Any] = {"model": VIT, "n_epochs": 1, "reg_config": RegConfig(type="None")}
    whole = train(experiment(extensions=plain, **given), tmp_path / "whole", device="cpu", reporter=quiet())
    asked = experiment(extensions=replace(plain, gradient_checkpointing=True), **given)
    with pytest.raises(Interrupted):
        train(
            asked, tmp_path / "parts", device="cpu", reporter=quiet(1, 1, partial(signal.raise_signal, signal.SIGTERM))
        )
    parts = train(asked, tmp_path / "parts", device="cpu", reporter=quiet(), resume=True)
    assert parts.rows == whole.rows
    assert recomputed
    found, expected = load_file(parts.last), load_file(whole.last)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("arch", ["torchvision/resnet18", "timm/dla46x_c"])
def test_gradient_checkpointing_is_refused_where_a_network_has_none(
    arch: str, experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    pytest.importorskip(arch.partition("/")[0])
    asked = experiment(
        model=ModelConfig(arch=arch, input_image_size="3,32,32"),
        extensions=Extensions(gradient_checkpointing=True),
    )
    with pytest.raises(RequestError, match=rf"gradient_checkpointing: {arch} has none"):
        train(asked, tmp_path, device="cpu", reporter=quiet())
