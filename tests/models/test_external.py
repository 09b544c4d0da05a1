from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from support.calibration import calibrate
from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import ArtefactError, MissingDependency, RequestError, TrtClsError
from trt_cls.export.export import export
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.models.external import has_cached_weights, hub_weights
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


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server on this machine for the files of `folder`."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_torchvisions_weights_are_downloaded_once_and_refused_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = pytest.importorskip("torchvision").models
    weights, remote = models.ResNet18_Weights.DEFAULT.value, tmp_path / "remote"
    remote.mkdir()
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, remote / "made")
    name = f"resnet18-{hashlib.sha256((remote / 'made').read_bytes()).hexdigest()[:8]}.pth"
    (remote / "made").rename(remote / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = contract("torchvision/resnet18").model
    with served(remote) as address:
        monkeypatch.setattr(weights, "url", f"{address}/{name}")
        assert hub_weights(asked)["conv1.weight"].sum() == 64 * 3 * 49
        monkeypatch.setattr(weights, "url", f"{address}/resnet18-00000000.pth")
        (remote / name).with_name("resnet18-00000000.pth").write_bytes(b"other")
        with pytest.raises(TrtClsError, match="invalid hash value"):
            hub_weights(asked)
    monkeypatch.setattr(weights, "url", f"{address}/{name}")  # the server is gone
    assert has_cached_weights(asked.arch)
    assert hub_weights(asked)["conv1.weight"].sum() == 64 * 3 * 49
    cached = tmp_path / "hub/checkpoints" / name
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{name}: is damaged: .*expected {name[9:17]}; remove it"):
        hub_weights(asked)


def test_timms_weights_are_read_from_the_cache_without_a_network_and_refused_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    timm = pytest.importorskip("timm")
    made = tmp_path / "made"
    save_file(timm.create_model("test_vit").state_dict(), made)
    content = made.read_bytes()
    repository = timm.get_pretrained_cfg("test_vit").hf_hub_id.replace("/", "--")
    blob = tmp_path / f"models--{repository}/blobs" / hashlib.sha256(content).hexdigest()
    link = blob.parents[1] / "snapshots/0000/model.safetensors"
    for folder in (blob.parent, link.parent, blob.parents[1] / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    (blob.parents[1] / "refs/main").write_text("0000")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    found = hub.try_to_load_from_cache(timm.get_pretrained_cfg("test_vit").hf_hub_id, "model.safetensors")
    assert found, "the cache is laid out as the hub's client expects"
    asked = contract("timm/test_vit", 160).model
    expected = load_file(made)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in hub_weights(asked).items())
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="is damaged: its SHA-256"):
        hub_weights(asked)


def test_weights_from_the_hub_are_all_taken_but_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(1)
    trained = models.resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: trained.state_dict())
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
