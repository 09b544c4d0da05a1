"""From checkpoint to checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.reference_weights import fill
from trt_cls.contract import METADATA_KEY, Contract, Preprocessing
from trt_cls.errors import ArtefactError, RequestError, TrtClsError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.models.network import count_parameters
from trt_cls.pruning.prune import prune, prune_network
from trt_cls.pruning.selection import Criteria
from trt_cls.spec.experiment import ModelConfig

PREPROCESSING = Preprocessing(3, 32, 32, "none", "bilinear", "rgb", 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TINY = ModelConfig(arch="mobilenet_v1", input_image_size="3,32,32", use_batch_norm=True)
RESNET = ModelConfig(n_layers=10, input_image_size="3,32,32", use_batch_norm=True, use_pooling=True)
TORCHVISION = ModelConfig(arch="torchvision/resnet18", input_image_size="3,32,32")
CLASSES = ("a", "b", "c")
HALF = Criteria(threshold=0.5)


def saved(path: Path, model: ModelConfig, **options: bool) -> Path:
    torch.manual_seed(0)
    module = build(model, len(CLASSES), **options)
    if model.arch.startswith("torchvision"):
        for name, weight in module.named_parameters():
            if name.endswith("conv1.weight"):
                weight.data.mul_(torch.rand(len(weight), 1, 1, 1))  # as if some filters had learned less
    else:
        fill(module)
    save_checkpoint(path, module, Contract(model, PREPROCESSING, CLASSES))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("prune") / "tiny.safetensors", RESNET)


@pytest.mark.parametrize("model", [TINY, RESNET, TORCHVISION], ids=lambda model: model.arch)
def test_a_pruned_checkpoint_comes_back_as_it_was(model: ModelConfig, tmp_path: Path) -> None:
    if model is TORCHVISION:
        pytest.importorskip("torchvision")
    source = saved(tmp_path / "whole.safetensors", model)
    before = source.read_bytes()
    pruned = prune(source, tmp_path / "new" / "pruned.safetensors", HALF)
    loaded = load_checkpoint(tmp_path / "new" / "pruned.safetensors")
    assert loaded.contract == load_checkpoint(source).contract
    assert count_parameters(loaded.module).total == pruned.parameters.after < pruned.parameters.before
    assert pruned.multiply_adds.ratio < 1
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), pruned.module(images))
    assert source.read_bytes() == before


def test_taos_final_pooling_and_frozen_blocks_survive(tmp_path: Path) -> None:
    model = replace(RESNET, freeze_blocks=(0,), input_image_size="3,64,64")
    source = saved(tmp_path / "whole.safetensors", model, tao_pooling=True)
    pruned = prune(source, tmp_path / "pruned.safetensors", HALF).module
    loaded = load_checkpoint(tmp_path / "pruned.safetensors").module
    assert loaded.tao_pooling
    assert not loaded.conv1.weight.requires_grad
    assert not pruned.conv1.weight.requires_grad
    assert loaded.bn_conv1.weight.requires_grad


def test_without_an_output_nothing_is_written(checkpoint: Path) -> None:
    assert prune(checkpoint, None, HALF).parameters.ratio < 1
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_target_is_reached_by_the_lowest_threshold_that_does(checkpoint: Path) -> None:
    target = 0.5
    pruned = prune(checkpoint, None, target=target)
    assert pruned.multiply_adds.ratio <= target
    same = prune(checkpoint, None, Criteria(threshold=pruned.threshold))
    assert same.filters == pruned.filters
    lower = prune(checkpoint, None, Criteria(threshold=pruned.threshold - 1e-6))
    assert lower.multiply_adds.ratio > target


def test_a_target_of_all_removes_nothing_that_counts(checkpoint: Path) -> None:
    assert prune(checkpoint, None, target=1).parameters.ratio == 1


def test_a_target_that_the_minimum_forbids_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RequestError, match=r"--target-flops 0\.001: 0\.\d+ of the multiply-adds are left"):
        prune(checkpoint, None, target=0.001)


@pytest.mark.parametrize("value", [0, -1, 1.1, float("nan")])
def test_a_target_that_is_no_share_is_refused(checkpoint: Path, value: float) -> None:
    with pytest.raises(RequestError, match="--target-flops"):
        prune(checkpoint, None, target=value)


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_a_threshold_that_is_none_is_refused(checkpoint: Path, value: float) -> None:
    with pytest.raises(RequestError, match="-pth"):
        prune(checkpoint, None, Criteria(threshold=value))


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        ("missing.safetensors", "b.safetensors", "no such file"),
        ("model.hdf5", "b.safetensors", "trt-cls import-tao"),
        ("model.onnx", "b.safetensors", r"expected a \.safetensors checkpoint"),
        ("whole.safetensors", "pruned.hdf5", r"use -o .*pruned\.safetensors"),
        ("whole.safetensors", "whole.safetensors", "would overwrite"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, checkpoint: Path, model: str, output: str, message: str) -> None:
    (tmp_path / "whole.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "model.hdf5").write_bytes(b"hdf5")
    before = sorted(tmp_path.iterdir())
    with pytest.raises((RequestError, ArtefactError), match=message) as raised:
        prune(tmp_path / model, tmp_path / output)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_that_was_trained_for_int8_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "int8.safetensors", loaded.module, replace(loaded.contract, precision="int8"))
    with pytest.raises(ArtefactError, match="was trained for INT8, with activation ranges of all its channels"):
        prune(tmp_path / "int8.safetensors", tmp_path / "out.safetensors", HALF)
    assert not (tmp_path / "out.safetensors").exists()


def test_widths_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    source = saved(tmp_path / "whole.safetensors", TORCHVISION)
    tensors = load_file(source)
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"][:40].clone()
    metadata = {METADATA_KEY: load_checkpoint(source).contract.to_json()}
    save_file(tensors, source, metadata)
    with pytest.raises(ArtefactError, match="do not fit each other"):
        load_checkpoint(source)
    tensors["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    tensors |= {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    save_file(tensors, source, metadata)
    with pytest.raises(ArtefactError, match=r"\[2\] logits for 3 classes"):
        load_checkpoint(source)


@pytest.mark.slow
def test_latency_is_measured_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("trt_cls.pruning.prune.SECONDS", 0.3)
    source = saved(tmp_path / "whole.safetensors", replace(RESNET, input_image_size="3,64,64"))
    latency = prune(source, None, Criteria(threshold=2, min_filters=8), latency=True).latency
    assert latency is not None
    assert 0 < latency.after < latency.before  # a hundredth of the work


class WidthWrittenIn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 1)
        self.fc = torch.nn.Linear(32, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3), keepdim=True).view(-1, 32))


def test_code_with_a_width_written_in_is_reported() -> None:
    with pytest.raises(TrtClsError, match=r"does not run .* fixed widths"):
        prune_network(WidthWrittenIn().eval(), (3, 8, 8), Criteria(threshold=2))


class Looks(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


def test_a_network_that_can_not_be_followed_is_reported() -> None:
    with pytest.raises(TrtClsError, match=r"torch\.export") as raised:
        prune_network(Looks(), (3, 8, 8), Criteria())
    assert "\n" not in str(raised.value)
