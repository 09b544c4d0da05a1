from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.tiny_models import CONTRACT, write_onnx
from trt_cls.artefacts.model_file import read_contract
from trt_cls.contract import METADATA_KEY
from trt_cls.errors import ArtefactError


def write_safetensors(path: Path, metadata: dict[str, str] | None) -> Path:
    save_file({"weight": np.zeros(1000, np.float32)}, path, metadata)
    return path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "model.safetensors", {METADATA_KEY: CONTRACT.to_json()})


@pytest.mark.parametrize("kind", ["onnx_file", "checkpoint"])
def test_comes_back_from_the_file(kind: str, request: pytest.FixtureRequest) -> None:
    assert read_contract(request.getfixturevalue(kind)) == CONTRACT


def test_is_found_in_whatever_order_the_fields_stand(onnx_file: Path) -> None:
    """Protobuf lets the metadata stand before the graph, as some writers do."""
    data = onnx_file.read_bytes()
    key = data.index(b"\x72")  # the first byte of a metadata entry: field 14, with a length
    while METADATA_KEY.encode() not in data[key : key + 40]:
        key = data.index(b"\x72", key + 1)
    onnx_file.write_bytes(data[key:] + data[:key])
    assert read_contract(onnx_file) == CONTRACT


@pytest.mark.parametrize("kind", ["onnx_file", "checkpoint"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(kind: str, share: float, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtefactError, match=r"model\.\w+.*(truncated|whole|can't be read)"):
        read_contract(path)


def test_a_foreign_onnx_file_is_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"not exported by trt-cls.*trt-cls export"):
        read_contract(write_onnx(tmp_path / "foreign.onnx", contract=None))


def test_a_foreign_checkpoint_is_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"contract.*pretrained_model_path"):
        read_contract(write_safetensors(tmp_path / "foreign.safetensors", None))


@pytest.mark.parametrize("content", [b"hello, this is text and no model", b"\xff" * 100, b"PK\x03\x04" + bytes(200)])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("model.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=name):
            read_contract(tmp_path / name)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".engine"])
def test_missing_empty_and_folder_are_distinguished(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ArtefactError, match="no such file"):
        read_contract(path)
    path.touch()
    with pytest.raises(ArtefactError, match="is empty"):
        read_contract(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtefactError, match="is a folder"):
        read_contract(path)


def test_a_misspelt_name_gets_a_hint(onnx_file: Path) -> None:
    with pytest.raises(ArtefactError, match=r'did you mean "model.onnx"'):
        read_contract(onnx_file.with_name("modell.onnx"))


def test_a_suffix_of_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r'suffix is ".hdf5"'):
        read_contract(tmp_path / "model.hdf5")
