from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.calibration import calibrate
from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import MissingDependency, RequestError, TrtClsError
from trt_cls.export.export import export
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.models.external import hub_weights
from trt_cls.models.pretrained import load_pretrained, take
from trt_cls.spec.experiment import ModelConfig

SIZE = 64
CLASSES = tuple("abcdefg")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def contract(arch: str, size: int = SIZE) -> Contract:
    model = ModelConfig(arch=arch, input_image_size=f"3,{size},{size}")
    return Contract(model, Preprocessing(3, size, size, "none", "bilinear", "rgb", 255.0, MEAN, STD), CLASSES)


def network(arch: str, size: int = SIZE) -> nn.Module:
    torch.manual_seed(0)
    module = build(contract(arch, size).model, len(CLASSES))
    return calibrate(module, torch.randn(8, 3, size, size))


def librarys_own(arch: str, **options: Any) -> nn.Module:
    library, name = arch.split("/")
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, num_classes=len(CLASSES))
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.get_model(name, weights=None, num_classes=len(CLASSES), **options)


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("torchvision/resnet18", SIZE, {}),
        ("torchvision/mobilenet_v3_small", SIZE, {}),
        ("torchvision/densenet121", SIZE, {}),
        ("torchvision/googlenet", SIZE, {"aux_logits": False, "init_weights": False}),
        pytest.param("torchvision/vgg11_bn", SIZE, {}, marks=pytest.mark.slow),
        pytest.param("torchvision/vit_b_32", 96, {"image_size": 96}, marks=pytest.mark.slow),
        ("timm/mobilenetv3_small_050", SIZE, {}),
        # holds buffers that its state dict leaves out
        pytest.param("timm/swin_tiny_patch4_window7_224", 224, {}, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_answers_as_the_librarys_own_network(
    arch: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    own = librarys_own(arch, **options)
    module = network(arch, size)
    own.load_state_dict(module.state_dict())
    save_checkpoint(tmp_path / "model.safetensors", module, contract(arch, size))
    del module
    loaded = load_checkpoint(tmp_path / "model.safetensors").module
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = own.eval()(images)
        assert (expected[0] - expected[1]).abs().max() > 0.1
        torch.testing.assert_close(loaded(images), expected, rtol=0, atol=1e-6)


def test_the_librarys_weights_load_by_name_all_but_the_head(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18(weights=None, num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    module = build(contract("torchvision/resnet18").model, len(CLASSES))
    report = load_pretrained(module, tmp_path / "resnet18.pth")
    assert report.new_head
    assert [mismatch.name for mismatch in report.mismatched] == ["fc.weight", "fc.bias"]
    assert not report.missing
    assert not report.unused
    assert torch.equal(module.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("arch", ["torchvision/resnet18", "timm/mobilenetv3_small_050"])
def test_exports_answer_as_the_network(arch: str, precision: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    save_checkpoint(tmp_path / "model.safetensors", network(arch), contract(arch))
    result = export(tmp_path / "model.safetensors", tmp_path / "model.onnx", precision=precision, builder="none")
    assert result.parity is not None
    assert result.parity.top1_agreement == 1


def test_timm_takes_gray_images() -> None:
    pytest.importorskip("timm")
    module = build(ModelConfig(arch="timm/mobilenetv3_small_050", input_image_size="1,64,96"), 3)
    assert module.eval()(torch.zeros(2, 1, 64, 96)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("torchvision/resnet19", "3,64,64", 'did you mean "resnet18"?'),
        ("timm/mobilnetv3_small_050", "3,64,64", 'did you mean "mobilenetv3_small_050"?'),
        ("torchvision/fasterrcnn_resnet50_fpn", "3,64,64", "classification networks"),
        ("torchvision/resnet18", "1,64,64", "torchvision's networks take 3"),
        ("torchvision/vit_b_32", "3,64,96", "set model_config.input_image_size"),
        ("torchvision/inception_v3", "3,64,64", "set model_config.input_image_size"),
    ],
)
def test_what_a_library_can_not_build_is_refused(arch: str, size: str, message: str) -> None:
    pytest.importorskip(arch.split("/")[0])
    with pytest.raises(RequestError, match=arch) as raised:
        build(ModelConfig(arch=arch, input_image_size=size), 7)
    assert message in str(raised.value)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=f'arch "{library}/resnet18" needs the package {library}'):
        build(ModelConfig(arch=f"{library}/resnet18"), 7)


def test_weights_from_the_hub_are_all_taken_but_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision").models
    cached = tmp_path / "hub" / "checkpoints" / Path(models.ResNet18_Weights.DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.manual_seed(1)
    trained = models.resnet18()
    torch.save(trained.state_dict(), cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = contract("torchvision/resnet18").model
    module = build(asked, len(CLASSES))
    report = take(module, hub_weights(asked), "the hub")
    assert report.new_head
    assert [mismatch.name for mismatch in report.mismatched] == ["fc.weight", "fc.bias"]
    assert not report.missing
    assert torch.equal(module.get_parameter("layer4.1.conv2.weight"), trained.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("arch", "client"),
    [
        ("torchvision/resnet18", "torchvision.models._api.load_state_dict_from_url"),
        ("timm/resnet18", "timm.create_model"),
    ],
)
def test_a_hub_out_of_reach_names_the_way_round(arch: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **options: Any) -> None:
        raise OSError("Network is unreachable")

    pytest.importorskip(arch.split("/")[0])
    monkeypatch.setattr(client, no_network)
    with pytest.raises(TrtClsError, match=r"Network is unreachable.*train_config\.pretrained_model_path") as raised:
        hub_weights(contract(arch).model)
    assert raised.value.exit_code == 1


def test_a_timm_network_without_weights_is_refused() -> None:
    timm = pytest.importorskip("timm")
    with_weights = {name.split(".")[0] for name in timm.list_models(pretrained=True)}
    name = next(name for name in timm.list_models() if name not in with_weights)
    with pytest.raises(RequestError, match="timm offers no weights"):
        hub_weights(contract(f"timm/{name}").model)
