from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trt_cls.errors import ArtefactError
from trt_cls.models import build
from trt_cls.models.network import Network
from trt_cls.models.pretrained import load_pretrained
from trt_cls.spec.experiment import ModelConfig

TINY = ModelConfig(arch="mobilenet_v1", input_image_size="3,32,32", use_batch_norm=True)


def network(classes: int = 3, **changes: Any) -> Network:
    return build(ModelConfig(arch="mobilenet_v1", input_image_size="3,32,32", use_batch_norm=True, **changes), classes)


def plain(weights: dict[str, Any]) -> object:
    return weights


def below_state_dict(weights: dict[str, Any]) -> object:
    return {"epoch": 3, "state_dict": weights}


def below_model(weights: dict[str, Any]) -> object:
    return {"model": weights}


def with_prefix(weights: dict[str, Any]) -> object:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def below_state_dict_with_prefix(weights: dict[str, Any]) -> object:
    return below_state_dict(with_prefix(weights))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [plain, below_state_dict, below_model, with_prefix, below_state_dict_with_prefix])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_every_tensor_of_a_state_dict_is_taken(
    tmp_path: Path, wrap: Callable[[dict[str, Any]], object], suffix: str
) -> None:
    source, target = network(), network()
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(source.state_dict()), path)
    report = load_pretrained(target, path)
    assert_equal_weights(source, target)
    assert (report.mismatched, report.missing, report.unused, report.new_head) == ((), (), (), False)


def test_every_tensor_of_a_safetensors_file_is_taken(tmp_path: Path) -> None:
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert not load_pretrained(target, tmp_path / "a.safetensors").mismatched
    assert_equal_weights(source, target)


def assert_equal_weights(source: Network, target: Network) -> None:
    theirs = source.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in target.state_dict().items())


def test_a_head_for_other_classes_starts_afresh_and_is_said_to(tmp_path: Path) -> None:
    source, target = network(5), network(3)
    head = target.predictions.weight.clone()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    report = load_pretrained(target, tmp_path / "a.pth")
    assert torch.equal(target.predictions.weight, head)
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert [(m.name, m.found, m.expected) for m in report.mismatched] == [
        ("predictions.weight", (5, 1024), (3, 1024)),
        ("predictions.bias", (5,), (3,)),
    ]
    assert report.new_head
    assert "the head is newly initialized" in str(report)
    assert "predictions.weight (5×1024 in the file, 3×1024 here)" in str(report)


def test_what_one_side_lacks_is_listed(tmp_path: Path) -> None:
    torch.save(network(use_bias=True).state_dict() | {"extra": torch.zeros(1)}, tmp_path / "a.pth")
    target = build(TINY, 3)
    report = load_pretrained(target, tmp_path / "a.pth")
    assert "extra" in report.unused
    assert "conv1.bias" in report.unused
    torch.save(target.state_dict(), tmp_path / "b.pth")
    report = load_pretrained(network(use_bias=True), tmp_path / "b.pth")
    assert "conv1.bias" in report.missing
    assert not any("num_batches_tracked" in name for name in report.missing + report.unused + report.matched)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "a.pth")
    with pytest.raises(ArtefactError, match=r"none of its 1 tensors fits .*layer1\.0\.conv1\.weight"):
        load_pretrained(build(TINY, 3), tmp_path / "a.pth")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def missing(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("weights")


def truncated(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def with_code(path: Path) -> None:
    torch.save({"conv1.weight": Bomb()}, path)


def a_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def a_tensor(path: Path) -> None:
    torch.save(torch.zeros(1), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("make", [missing, folder, empty, text, truncated, with_code, a_list, a_tensor])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    make(path)
    with pytest.raises(ArtefactError) as error:
        load_pretrained(build(TINY, 3), path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out
