"""A pruned file as pretrained_model_path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.recipe import fill
from shared_data import tao

from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import ArtefactError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.models.pretrained import load_pretrained
from trt_cls.models.tao_network import import_network
from trt_cls.pruning.prune import prune
from trt_cls.pruning.selection import Criteria
from trt_cls.spec.experiment import ModelConfig

PREPROCESSING = Preprocessing(3, 32, 32, "none", "bilinear", "rgb", 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
MODEL = ModelConfig(n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
TORCHVISION = ModelConfig(arch="torchvision/resnet18", input_image_size="3,32,32")


def pruned(folder: Path, model: ModelConfig = MODEL, classes: int = 3) -> Path:
    module = build(model, classes)
    contract = Contract(model, PREPROCESSING, tuple(f"class {index}" for index in range(classes)))
    save_checkpoint(folder / "whole.safetensors", fill(module) if model is not TORCHVISION else module, contract)
    prune(folder / "whole.safetensors", folder / "pruned.safetensors", Criteria(threshold=0.9))
    return folder / "pruned.safetensors"


def assert_same_answers(module: torch.nn.Module, path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), load_checkpoint(path).module(images))


@pytest.mark.parametrize("model", [MODEL, TORCHVISION], ids=lambda model: model.arch)
def test_the_network_takes_the_widths_of_the_file(tmp_path: Path, model: ModelConfig) -> None:
    if model is TORCHVISION:
        pytest.importorskip("torchvision")
    path = pruned(tmp_path, model)
    module = build(model, 3)
    report = load_pretrained(module, path, model)
    assert (report.mismatched, report.missing, report.unused, report.new_head) == ((), (), (), False)
    assert report.narrowed > 5
    assert f"{report.narrowed} layers are as narrow as in the file" in str(report)
    assert_same_answers(module, path)
    module.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(weight.grad is not None for weight in module.parameters())


def test_a_head_for_other_classes_starts_afresh(tmp_path: Path) -> None:
    module = build(MODEL, 5)
    report = load_pretrained(module, pruned(tmp_path), MODEL)
    assert report.new_head
    assert module.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_another_size_of_images_is_no_matter_where_the_network_takes_it(tmp_path: Path) -> None:
    module = build(replace(MODEL, input_image_size="3,48,64"), 3)
    assert not load_pretrained(module, pruned(tmp_path), MODEL).mismatched
    assert_same_answers(module, tmp_path / "pruned.safetensors")


@pytest.mark.parametrize("changes", [{"input_image_size": "1,32,32"}, {"all_projections": True, "n_layers": 18}])
def test_a_pruned_network_of_other_options_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = pruned(tmp_path, replace(MODEL, n_layers=18))
    model = replace(MODEL, **{"n_layers": 18} | changes)
    with pytest.raises(ArtefactError, match=r"pruned resnet that does not fit the spec's model_config") as raised:
        load_pretrained(build(model, 3), path, model)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_narrower_network_of_another_architecture_is_not_followed(tmp_path: Path) -> None:
    b1 = ModelConfig(arch="efficientnet_b1", input_image_size="3,32,32")
    b2 = replace(b1, arch="efficientnet_b2")
    save_checkpoint(tmp_path / "b1.safetensors", build(b1, 3), Contract(b1, PREPROCESSING, ("a", "b", "c")))
    report = load_pretrained(build(b2, 3), tmp_path / "b1.safetensors", b2)
    assert report.mismatched
    assert not report.narrowed


def test_a_network_pruned_in_tao_gives_its_widths_too() -> None:
    pytest.importorskip("h5py")
    path = next(path for path in sorted(tao("hdf5").glob("*.hdf5")) if "prun" in path.name)
    imported = import_network(path)
    module = build(imported.config, imported.module.num_classes)
    assert load_pretrained(module, path, imported.config).narrowed
    images = torch.randn(2, *imported.config.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), imported.module(images))
