"""Which layers 8 bits compute in transformers, what share of the multiply-adds that is, and when it is too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from trt_cls.artefacts.decoding import contract_from_json  # noqa: E402
from trt_cls.artefacts.onnx_file import OnnxModel, onnx_contract, write_onnx  # noqa: E402
from trt_cls.contract import Contract  # noqa: E402
from trt_cls.engines import open_engine  # noqa: E402
from trt_cls.engines.inspection import inspect  # noqa: E402
from trt_cls.engines.onnx_graph import graph_of  # noqa: E402
from trt_cls.engines.onnxruntime import session_of  # noqa: E402
from trt_cls.errors import ArtefactError, ExportError  # noqa: E402
from trt_cls.export.fp16 import fp16_from_fp32  # noqa: E402
from trt_cls.export.int8 import Int8, quantize, trained_for_int8  # noqa: E402
from trt_cls.export.int8.layers import float_layers_text, quantizable  # noqa: E402
from trt_cls.export.int8.qdq import int8_from_fp32, measure_magnitudes  # noqa: E402
from trt_cls.export.torch_to_onnx import onnx_from_module  # noqa: E402
from trt_cls.models.int8_layers import measured_ranges, quantize_layers, trained_ranges  # noqa: E402
from trt_cls.models.int8_ranges import decibels  # noqa: E402
from trt_cls.models.network import multiply_adds  # noqa: E402


class Transformer(nn.Module):
    """Patches, one block of attention and a dense part, a narrow gate, and a head."""

    def __init__(self, width: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.norm, self.norm2, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.squeeze, self.expand = nn.Linear(width, 4), nn.Linear(4, width)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Any) -> Any:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.proj((q @ k.transpose(1, 2)).mul(0.2).softmax(-1) @ v)
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        x = x * self.expand(self.squeeze(x)).sigmoid()
        return self.head(self.last_norm(x).mean(1))


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer().eval()


@pytest.fixture(scope="module")
def plain(transformer: nn.Module, contract: Contract) -> OnnxModel:
    return onnx_from_module(transformer, contract)


@pytest.fixture(scope="module")
def int8(plain: OnnxModel, images: Any) -> OnnxModel:
    layers = quantizable(plain.proto)
    found = measure_magnitudes(plain.proto, list({name for names in layers.values() for name in names}), [images])
    return int8_from_fp32(plain, {name: part.largest for name, part in found.items()}, layers)


DENSE = ["qkv", "proj", "fc1", "fc2"]


def test_dense_layers_over_tokens_are_quantized_and_neither_attention_nor_the_residual_stream(plain: OnnxModel) -> None:
    nodes = {node.name: node for node in plain.proto.graph.node}
    found = [(nodes[name].op_type, nodes[name].input[1]) for name in quantizable(plain.proto)]
    expected = [("Conv", "patches.weight"), *(("MatMul", f"{name}.weight") for name in DENSE), ("Gemm", "head.weight")]
    assert found == expected


def test_each_output_of_a_product_has_a_scale_of_its_own(int8: OnnxModel, transformer: nn.Module) -> None:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.proto.graph.initializer}
    for name in DENSE:
        expected = transformer.get_submodule(name).weight.detach().abs().amax(1).numpy() / 127  # type: ignore[union-attr]
        np.testing.assert_allclose(values[f"{name}.weight_scale"], expected, rtol=2e-3)


def test_the_logits_keep_thirty_decibels(int8: OnnxModel, plain: OnnxModel, images: Any) -> None:
    exact, rounded = (
        session_of(model.proto, ["logits"]).run(["logits"], {"input_1": images})[0].astype(np.float32)
        for model in (plain, int8)
    )
    assert 30 < decibels(exact, rounded - exact) < 60


def test_every_session_of_onnx_runtime_computes_the_file(int8: OnnxModel, images: Any, tmp_path: Path) -> None:
    from support.optimized import by_level

    write_onnx(int8, tmp_path / "int8.onnx")
    found = by_level(tmp_path / "int8.onnx", images)
    for level, answers in {**found, "ours": open_engine(tmp_path / "int8.onnx", "cpu").infer(images)}.items():
        np.testing.assert_allclose(answers, found["ORT_DISABLE_ALL"], atol=0.01, err_msg=level)


def test_multiply_adds_are_those_that_torch_counts(plain: OnnxModel, int8: OnnxModel) -> None:
    expected = multiply_adds(Transformer().to("meta"), (3, 32, 32))
    for model in (plain, int8):
        assert sum(layer.multiply_adds for layer in graph_of(model.proto).layers) == expected


def test_the_share_is_what_the_graph_computes_and_the_file_says(int8: OnnxModel, tmp_path: Path) -> None:
    outside = 2 * 16 * 16 * 32 + 2 * 16 * 32 * 4
    expected = 1 - outside / multiply_adds(Transformer().to("meta"), (3, 32, 32))
    assert graph_of(int8.proto).eight_bits == pytest.approx(expected)
    write_onnx(int8, tmp_path / "model.onnx")
    assert onnx_contract(tmp_path / "model.onnx").eight_bits == round(expected, 4)
    old = OnnxModel(int8.proto, Contract(int8.contract.model, int8.contract.preprocessing, tuple("abcde"), "int8"))
    write_onnx(old, tmp_path / "old.onnx")
    assert onnx_contract(tmp_path / "old.onnx").eight_bits is None
    assert inspect(tmp_path / "old.onnx").contract.eight_bits == pytest.approx(expected)


def test_a_share_beyond_one_is_refused(int8: OnnxModel, tmp_path: Path) -> None:
    text = int8.contract.to_json().replace('"eight_bits": 0', '"eight_bits": 7')
    with pytest.raises(ArtefactError, match=r"eight_bits: 7\.\d+ found, expected a number in \[0, 1\]"):
        contract_from_json(text, "file")


def test_what_stays_is_listed_with_its_reason_and_its_share(plain: OnnxModel) -> None:
    found = float_layers_text(plain.proto, quantizable(plain.proto))
    assert "2 × product of two activations (" in found
    assert "2 × dense layer with fewer than 16 inputs or outputs (" in found


def test_a_network_of_attention_above_all_is_refused_and_met_where_it_is_taken_as_it_is(
    contract: Contract, pictures: Path
) -> None:
    torch.manual_seed(0)
    model = onnx_from_module(Transformer(width=16, patch=2).eval(), contract)
    with pytest.raises(ExportError, match=r"2\d\.\d% of the multiply-adds in 8 bits.* 2 × product of two activations"):
        quantize(model, Int8(), pictures, None, print)
    said: list[str] = []
    found = quantize(model, Int8(keep=("first",), batches=1), pictures, None, said.append)
    assert found.contract.eight_bits is not None
    assert found.contract.eight_bits < 0.5
    assert said[-1].startswith(f"8 bits compute {found.contract.eight_bits:.1%} of the multiply-adds, float16 ")


class ConvNext(nn.Module):
    """A patch convolution and a block: depthwise, normalization over channels, two convolutions of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.depthwise, self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.LayerNorm(32)
        self.fc1, self.fc2, self.head = nn.Conv2d(32, 128, 1), nn.Conv2d(128, 32, 1), nn.Linear(32, 5)

    def forward(self, images: Any) -> Any:
        x = self.patches(images)
        normed = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head((x + self.fc2(nn.functional.gelu(self.fc1(normed)))).mean((2, 3)))


def test_openvino_computes_a_convnext_in_float_where_its_integer_kernels_saturate(
    contract: Contract, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("trt_cls.engines.openvino.saturates", lambda: True)
    torch.manual_seed(0)
    fp32 = onnx_from_module(ConvNext().eval(), contract)
    layers = quantizable(fp32.proto)
    found = measure_magnitudes(fp32.proto, list({name for names in layers.values() for name in names}), [images])
    int8 = int8_from_fp32(fp32, {name: part.largest for name, part in found.items()}, layers)
    write_onnx(int8, tmp_path / "int8.onnx")
    exact, other = (open_engine(tmp_path / "int8.onnx", provider).infer(images) for provider in ("cpu", "openvino"))
    logits, noise = np.log(exact), np.log(other) - np.log(exact)
    assert decibels(logits, noise) > 35, "8-bit products would be cut: 20 dB"


def test_training_quantizes_the_same_layers_and_export_writes_its_ranges(
    contract: Contract, plain: OnnxModel, images: Any
) -> None:
    torch.manual_seed(0)
    network = Transformer().eval()
    found = measured_ranges(network, [torch.from_numpy(images)])
    assert list(found) == ["patches", *DENSE, "head"]
    quantize_layers(network, {name: [part.largest for part in parts] for name, parts in found.items()})
    ranges = trained_ranges(network)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).softmax(1).numpy()
    said: list[str] = []
    model = trained_for_int8(network, contract, said.append)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    read = {node.input[0]: node.input[1] for node in model.proto.graph.node if node.op_type == "QuantizeLinear"}
    scales = {float(values[scale]) for name, scale in read.items() if name not in values}
    assert scales == {part / 127 for parts in ranges.values() for part in parts}
    assert said[0].startswith("8 bits compute ")
    (answers,) = session_of(model.proto).run(None, {"input_1": images})
    np.testing.assert_allclose(answers, expected, atol=0.01)


def test_zeros_that_are_made_in_the_graph_become_float16(plain: OnnxModel, images: Any) -> None:
    """As masks of shifted windows; ConstantOfShape gives float32 where it names no type."""
    model = OnnxModel(onnx.ModelProto.FromString(plain.proto.SerializeToString()), plain.contract)
    graph = model.proto.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1, 5]), "shape"))
    (dense,) = [node for node in graph.node if node.op_type == "Gemm"]
    dense.output[0] = "before"
    softmax = graph.node.pop()
    graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
            helper.make_node("Cast", ["shape"], ["cast"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["cast"], ["least"], name="least", keepdims=0),
            helper.make_node("Add", ["before", "zeros"], ["sum"], name="sum"),
            helper.make_node("Mul", ["sum", "least"], ["logits"], name="product"),
            softmax,
        ]
    )
    half, exact = (
        session_of(found.proto).run(None, {"input_1": images})[0] for found in (fp16_from_fp32(model), plain)
    )
    np.testing.assert_allclose(half, exact, atol=2e-3)
