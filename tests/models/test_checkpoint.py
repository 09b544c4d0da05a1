from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.in_place import atomic_in_place
from support.reference_weights import fill, images
from trt_cls.artefacts.model_file import checkpoint_contract
from trt_cls.contract import METADATA_KEY, Contract, Preprocessing
from trt_cls.errors import ArtefactError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.models.network import Network
from trt_cls.spec.experiment import BatchNormConfig, ModelConfig

PREPROCESSING = Preprocessing(3, 32, 32, "center", "bilinear", "rgb", 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
GRAY = Preprocessing(1, 32, 32, "center", "bilinear", "gray", 127.5, (1.0,), (1.0,))
TINY = ModelConfig(arch="mobilenet_v1", input_image_size="3,32,32", use_batch_norm=True)


def contract(model: ModelConfig, classes: int = 3) -> Contract:
    pixels = PREPROCESSING if model.input_shape[0] == 3 else GRAY
    return Contract(model, pixels, tuple(f"Klasse {index} ü" for index in range(classes)))


def saved(path: Path, network: Network, model: ModelConfig, classes: int = 3) -> Path:
    save_checkpoint(path, network, contract(model, classes))
    return path


def test_kill_9_leaves_no_file_of_a_name_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_cls.models.checkpoint.atomic", atomic_in_place)
    saved(tmp_path / "a.safetensors", build(TINY, 3), TINY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "tiny.safetensors", build(TINY, 3), TINY)


@pytest.mark.parametrize(
    "model",
    [
        TINY,
        ModelConfig(n_layers=10, input_image_size="3,32,32", use_batch_norm=True, use_pooling=True, retain_head=True),
        ModelConfig(n_layers=10, input_image_size="1,32,48", freeze_bn=True, use_batch_norm=True, freeze_blocks=(0, 1)),
        ModelConfig(
            n_layers=10,
            input_image_size="3,32,32",
            use_batch_norm=True,
            batch_norm_config=BatchNormConfig(epsilon=1e-3),
        ),
        ModelConfig(arch="squeezenet", input_image_size="3,32,32", retain_head=True),
    ],
    ids=["mobilenet", "flat-head", "frozen", "epsilon", "convolution-head"],
)
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, model: ModelConfig) -> None:
    network = fill(build(model, 3))
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", network, model))
    assert loaded.contract == contract(model)
    assert not any(module.training for module in loaded.module.modules())
    batch = torch.from_numpy(images(model.input_shape))
    with torch.no_grad():
        assert torch.equal(loaded.module(batch), network(batch))
    frozen = {name for name, weight in loaded.module.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, weight in network.named_parameters() if not weight.requires_grad}


def test_narrowed_layers_come_back_as_narrow(tmp_path: Path) -> None:
    network = fill(build(TINY, 3, widths={"conv1": 24, "conv_pw_5": 72}))
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", network, TINY)).module
    assert loaded.conv_dw_1.weight.shape[0] == 24
    batch = torch.from_numpy(images((3, 32, 32)))
    assert torch.equal(loaded(batch), network(batch))


@pytest.mark.parametrize("tao_pooling", [True, False])
def test_the_kind_of_final_pooling_comes_back(tmp_path: Path, tao_pooling: bool) -> None:
    model = ModelConfig(n_layers=10, input_image_size="3,64,64", use_pooling=True)
    network = fill(build(model, 3, tao_pooling=tao_pooling))
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", network, model)).module
    batch = torch.from_numpy(images((3, 64, 64)))
    assert torch.equal(loaded(batch), network(batch))


def test_a_loaded_network_trains_without_changing_its_file(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    network = load_checkpoint(checkpoint).module.train()
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert checkpoint.read_bytes() == before


def test_the_contract_is_read_without_torch(checkpoint: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from trt_cls.artefacts.model_file import checkpoint_contract; "
        "print(checkpoint_contract(Path(sys.argv[1])).classes[0]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint], capture_output=True, check=False, encoding="utf-8"
    )
    assert (done.stdout, done.stderr) == ("Klasse 0 ü\n", "")


def missing(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.with_name("whole").read_bytes()[:-4])


def header_cut(path: Path) -> None:
    path.write_bytes(path.with_name("whole").read_bytes()[:100])


def pickled(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, path)


def without_contract(path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, path)


def contract_of_another_format(path: Path) -> None:
    changed = json.loads(contract(TINY).to_json()) | {"format": 99}
    save_file({"conv1.weight": torch.zeros(1)}, path, {METADATA_KEY: json.dumps(changed)})


UNREADABLE = [missing, folder, empty, truncated, header_cut, pickled, without_contract, contract_of_another_format]


@pytest.mark.parametrize("read", [checkpoint_contract, load_checkpoint])
@pytest.mark.parametrize("break_", UNREADABLE)
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, checkpoint: Path, break_: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "broken.safetensors"
    (tmp_path / "whole").write_bytes(checkpoint.read_bytes())
    break_(path)
    with pytest.raises(ArtefactError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (ModelConfig(arch="mobilenet_v2", input_image_size="3,32,32", use_batch_norm=True), 3),
        (ModelConfig(arch="mobilenet_v1", input_image_size="3,32,32", use_batch_norm=True, use_bias=True), 3),
        (ModelConfig(arch="mobilenet_v1", input_image_size="1,32,32", use_batch_norm=True), 3),
        (TINY, 4),
        (ModelConfig(arch="unknown"), 3),
    ],
    ids=["other-family", "other-options", "other-channels", "other-classes", "unknown-family"],
)
def test_tensors_of_another_network_are_refused_in_one_line(
    tmp_path: Path, checkpoint: Path, model: ModelConfig, classes: int
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(load_file(checkpoint), path, {METADATA_KEY: contract(model, classes).to_json()})
    with pytest.raises(ArtefactError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
