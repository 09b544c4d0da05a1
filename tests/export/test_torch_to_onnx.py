from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from trt_cls.artefacts.onnx_file import OnnxModel, read_onnx, write_onnx
from trt_cls.artefacts.sidecar import Parity
from trt_cls.contract import METADATA_KEY, Contract
from trt_cls.engines.inspection import inspect
from trt_cls.errors import ArtefactError, ExportError
from trt_cls.export.torch_to_onnx import onnx_from_module, require_valid

if TYPE_CHECKING:
    from trt_cls.models.network import Network

ort = pytest.importorskip("onnxruntime")


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["predictions"], {"input_1": images})[0]


@pytest.mark.parametrize("batch", [1, 5])
def test_answers_as_the_network_for_any_batch(fp32: onnx.ModelProto, network: Network, batch: int) -> None:
    import torch

    images = np.random.default_rng(batch).uniform(-120, 140, (batch, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(images)), 1).numpy()
    found = run(fp32, images)
    assert found.dtype == np.float32
    assert expected.std() > 0.01, "the network answers all the same: the comparison would prove nothing"
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_batch_normalisation_is_folded(fp32: onnx.ModelProto) -> None:
    assert "BatchNormalization" not in {node.op_type for node in fp32.graph.node}


def test_names_and_shapes_are_those_of_the_contract_with_users(fp32: onnx.ModelProto) -> None:
    text = onnx.printer.to_text(fp32)
    assert "(float[N,3,32,32] input_1) => (float[N,5] predictions)" in text
    assert fp32.opset_import[0].version == 20
    assert (fp32.producer_name, fp32.graph.node[-1].op_type) == ("trt-cls", "Softmax")


def test_weights_keep_the_names_of_the_checkpoint(fp32: onnx.ModelProto, network: Network) -> None:
    weights = {tensor.name for tensor in fp32.graph.initializer if len(tensor.dims) > 1}
    assert weights == {name for name, tensor in network.state_dict().items() if tensor.dim() > 1}


def test_carries_its_contract_and_nothing_of_the_machine(
    fp32: onnx.ModelProto, contract: Contract, tmp_path: Path
) -> None:
    write_onnx(OnnxModel(fp32, contract), tmp_path / "model.onnx")
    text = onnx.load(tmp_path / "model.onnx")
    assert [entry.key for entry in text.metadata_props] == [METADATA_KEY]
    assert read_onnx(tmp_path / "model.onnx").contract == contract
    for tensor in text.graph.initializer:
        tensor.raw_data = b""  # numbers may spell anything
    written = text.SerializeToString()
    for trace in (b"pkg.torch", b"site-packages", b".py", os.getcwd().encode()):
        assert trace not in written


@pytest.mark.usefixtures("fresh_exports")
def test_the_same_weights_give_the_same_bytes(
    network: Network, contract: Contract, fp32: onnx.ModelProto, tmp_path: Path
) -> None:
    for name, model in (("first", OnnxModel(fp32, contract)), ("second", onnx_from_module(network, contract))):
        write_onnx(model, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(
    checkpoint: Path, fp32: onnx.ModelProto, contract: Contract, tmp_path: Path
) -> None:
    write_onnx(OnnxModel(fp32, contract), tmp_path / "here")
    program = (
        "import sys; from pathlib import Path; from trt_cls.export.torch_to_onnx import *;"
        "from trt_cls.artefacts.onnx_file import *;"
        "from trt_cls.models.checkpoint import load_checkpoint; c = load_checkpoint(Path(sys.argv[1]));"
        "write_onnx(onnx_from_module(c.module, c.contract), Path('there'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(checkpoint)], cwd=tmp_path, capture_output=True, check=True
    )
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert (done.stdout, done.stderr) == (b"", b""), "the exporter must be quiet"


def test_an_exported_network_costs_what_its_checkpoint_does(
    checkpoint: Path, fp32: onnx.ModelProto, fp16: onnx.ModelProto, contract: Contract, tmp_path: Path
) -> None:
    source = inspect(checkpoint)
    for kind, graph in (("float32", fp32), ("float16", fp16)):
        write_onnx(OnnxModel(graph, contract), tmp_path / "a.onnx")
        found = inspect(tmp_path / "a.onnx")
        assert found.multiply_adds == source.multiply_adds
        assert {layer.type for layer in found.layers if layer.operation in ("Conv", "Gemm")} == {kind}


def test_a_network_of_another_shape_than_its_contract_is_refused(network: Network, contract: Contract) -> None:
    from dataclasses import replace

    with pytest.raises(ExportError, match=r"5.*expected.*2"):
        onnx_from_module(network, replace(contract, classes=("one", "two")))


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_a_truncated_file_is_refused(fp32: onnx.ModelProto, tmp_path: Path, keep: float) -> None:
    whole = fp32.SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ArtefactError, match=r"cut\.onnx"):
        read_onnx(path)


def test_a_foreign_file_is_refused(fp32: onnx.ModelProto, tmp_path: Path) -> None:
    foreign = onnx.ModelProto()
    foreign.CopyFrom(fp32)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ArtefactError, match="carries no contract"):
        read_onnx(tmp_path / "foreign.onnx")


def test_a_graph_with_a_dangling_input_is_refused(fp32: onnx.ModelProto, contract: Contract) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(fp32)
    broken.graph.node[3].input[0] = "nowhere"
    with pytest.raises(ExportError, match="nowhere"):
        require_valid(OnnxModel(broken, contract))


def test_parity_travels_in_the_file(fp32: onnx.ModelProto, contract: Contract, tmp_path: Path) -> None:
    write_onnx(OnnxModel(fp32, contract), tmp_path / "model.onnx")
    assert read_onnx(tmp_path / "model.onnx").parity is None
    parity = Parity(12, 1.0, 3e-6, "12 of 12 images of Bilder/größer")
    write_onnx(OnnxModel(fp32, contract, parity), tmp_path / "model.onnx")
    assert read_onnx(tmp_path / "model.onnx").parity == parity
    properties = onnx.load(tmp_path / "model.onnx").metadata_props
    assert json.loads({entry.key: entry.value for entry in properties}["trt_cls.parity"])["images"] == 12
