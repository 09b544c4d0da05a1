"""A pruned file as pretrained_model_path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from support.calibration import features_of, train_on
from support.reference_weights import fill
from support.shared_data import cifar10, tao_json
from trt_cls.cli import main
from trt_cls.contract import Contract, Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.errors import ArtefactError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint, widths
from trt_cls.models.pretrained import load_pretrained
from trt_cls.models.tao.network import import_network
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.pruning.prune import prune
from trt_cls.pruning.selection import Criteria
from trt_cls.spec import loads
from trt_cls.spec.experiment import ModelConfig

PREPROCESSING = Preprocessing(3, 32, 32, "none", "bilinear", "rgb", 255.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
MODEL = ModelConfig(n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
TORCHVISION = ModelConfig(arch="torchvision/resnet18", input_image_size="3,32,32")
CRITERIA = Criteria(threshold=0.9, granularity=2, min_filters=2)
"""For networks of an eighth of the channels."""
pytestmark = pytest.mark.usefixtures("narrow")


def pruned(folder: Path, model: ModelConfig = MODEL, classes: int = 3) -> Path:
    torch.manual_seed(0)
    module = build(model, classes)
    contract = Contract(model, PREPROCESSING, tuple(f"class {index}" for index in range(classes)))
    save_checkpoint(folder / "whole.safetensors", fill(module) if model is not TORCHVISION else module, contract)
    prune(folder / "whole.safetensors", folder / "pruned.safetensors", CRITERIA)
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
    assert report.narrowed > 2
    assert f"{report.narrowed} layers are as narrow as in the file" in str(report)
    assert_same_answers(module, path)
    module.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(weight.grad is not None for weight in module.parameters())


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, retain_head=True),  # its head is named for the number of classes
        replace(MODEL, arch="squeezenet", retain_head=True),
        pytest.param(replace(MODEL, arch="vgg", n_layers=16, retain_head=True), marks=pytest.mark.slow),
    ],
    ids=lambda model: f"{model.arch}{'-head' * model.retain_head}",
)
def test_a_head_for_other_classes_starts_afresh(tmp_path: Path, model: ModelConfig) -> None:
    path = pruned(tmp_path, model)
    module = build(model, 5)
    report = load_pretrained(module, path, model)
    assert report.new_head
    assert {mismatch.name.rpartition(".")[0] for mismatch in report.mismatched} <= {module.head}
    assert {name.rpartition(".")[0] for name in report.missing} <= {module.head}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert module.eval()(images).shape == (2, 5)
        assert torch.equal(features_of(module, images), features_of(load_checkpoint(path).module, images))


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


def test_a_network_pruned_in_tao_gives_its_widths_too(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    from support.keras_file import keras_layers, narrow, write

    layers = keras_layers(tao_json("layer_tables/cspdarknet_tiny.json"), (3, 32, 32), narrow)
    path = write(tmp_path / "a.hdf5", *layers)
    imported = import_network(path)
    module = build(imported.config, imported.module.num_classes)
    assert load_pretrained(module, path, imported.config).narrowed
    images = torch.randn(2, *imported.config.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), imported.module(images))


SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,32,32" use_batch_norm: true }}
train_config {{
  train_dataset_path: "{data}" val_dataset_path: "{data}" pretrained_model_path: "{folder}/pruned.safetensors"
  batch_size_per_gpu: 6 n_epochs: 15 n_workers: 0 preprocess_mode: "torch" enable_center_crop: false
  enable_random_crop: false disable_horizontal_flip: true
  optimizer {{ adam {{}} }} reg_config {{ type: "None" }} lr_config {{ cosine {{ learning_rate: 0.01 }} }}
}}
extensions {{ distillation {{ teacher: "{folder}/whole.safetensors" temperature: 2.0 weight: 1.0 }} }}
"""


def test_the_unpruned_network_teaches_the_pruned_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = cut_of_cifar10(tmp_path / "data", images=8)
    text = SPEC.format(folder=tmp_path, data=data.root)
    preprocessing = preprocessing_from_spec(loads(text), "train")
    (batch,) = stream(data.samples, preprocessing, batch_size=len(data.samples), workers=1)
    images = torch.from_numpy(batch.images)
    torch.manual_seed(0)
    labels = torch.tensor([sample.label for sample in batch.samples])
    whole = train_on(fill(build(MODEL, len(data.classes))), images, labels)
    save_checkpoint(tmp_path / "whole.safetensors", whole, Contract(MODEL, preprocessing, data.classes))
    prune(tmp_path / "whole.safetensors", tmp_path / "pruned.safetensors", CRITERIA, target=0.5)
    (tmp_path / "spec.txt").write_text(text)
    assert main(["train", "-e", str(tmp_path / "spec.txt"), "-r", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "layers are as narrow as in the file" in capsys.readouterr().err
    before = load_checkpoint(tmp_path / "pruned.safetensors").module
    after = load_checkpoint(tmp_path / "run" / "weights" / "resnet_015.safetensors").module
    assert widths(after.state_dict()) == widths(before.state_dict()) != widths(whole.state_dict())
    assert divergence(whole, after, images) < divergence(whole, before, images) / 2


def cut_of_cifar10(folder: Path, images: int) -> ImageFolder:
    """So many pictures of each of three classes."""
    for source in sorted((cifar10() / "train").iterdir())[:3]:
        (folder / source.name).mkdir(parents=True)
        for path in sorted(source.iterdir())[:images]:
            (folder / source.name / path.name).symlink_to(path)
    return image_folder(folder)


@torch.no_grad()
def divergence(teacher: torch.nn.Module, learner: torch.nn.Module, images: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of the answers, in nats."""
    log_taught, log_learned = (functional.log_softmax(module.eval()(images), 1) for module in (teacher, learner))
    return float((log_taught.exp() * (log_taught - log_learned)).sum(1).mean())
