"""INT8 is computed in float arithmetic on every processor: integer kernels saturate on those without VNNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx  # noqa: E402
from trt_cls.contract import Contract  # noqa: E402
from trt_cls.engines import open_engine  # noqa: E402
from trt_cls.export.int8.layers import quantizable  # noqa: E402
from trt_cls.export.int8.qdq import int8_from_fp32, measure_magnitudes, with_qdq  # noqa: E402
from trt_cls.preprocessing.description import default_preprocessing_of_tao  # noqa: E402
from trt_cls.spec.experiment import ModelConfig  # noqa: E402


def transformer() -> OnnxModel:
    """A vision transformer of six small blocks."""
    pytest.importorskip("timm")
    from trt_cls.export.torch_to_onnx import onnx_from_module
    from trt_cls.models import build

    config = ModelConfig(arch="timm/test_vit", input_image_size="3,160,160")
    contract = Contract(config, default_preprocessing_of_tao(config.input_shape), tuple("abcde"))
    return onnx_from_module(build(config, 5).eval(), contract)


@pytest.mark.parametrize("kind", ["convolutions", pytest.param("transformer", marks=pytest.mark.slow)])
def test_no_layer_becomes_an_integer_kernel(
    fp32: onnx.ModelProto, contract: Contract, tmp_path: Path, kind: str
) -> None:
    from support.optimized import integer_kernels, optimized, quantized_layers

    exported = OnnxModel(fp32, contract) if kind == "convolutions" else transformer()
    model = exported.proto
    layers = quantizable(model)
    shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    batch = np.random.default_rng(0).normal(0, 60, shape).astype(np.float32)
    tensors = list(dict.fromkeys(name for names in layers.values() for name in names))
    ranges = {name: found.largest for name, found in measure_magnitudes(model, tensors, [batch]).items()}
    weighted = sum(node.op_type != "Add" for node in model.graph.node if node.name in layers)
    for name, quantized in (
        ("file.onnx", int8_from_fp32(exported, ranges, layers).proto),
        ("compared.onnx", with_qdq(model, ranges, layers)),
    ):
        onnx.save(quantized, tmp_path / name)
        found = optimized(tmp_path / name)
        assert integer_kernels(found) == set(), name
        assert quantized_layers(found) == weighted, name


class Mobile(nn.Module):
    """An inverted bottleneck and a hidden dense layer: small weights, and biases of 30,000 steps of 8-bit products."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 1)
        self.depthwise, self.hidden = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)
        for layer, scale in ((self.widen, 1e-2), (self.depthwise, 1e-2), (self.narrow, 0.2), (self.hidden, 1e-2)):
            nn.init.uniform_(layer.weight, -scale, scale)
            nn.init.uniform_(layer.bias, 0.2, 1.0)

    def forward(self, images: Any) -> Any:
        x = self.depthwise(self.widen(images).clip(0, 6)).clip(0, 6)
        return self.head(self.hidden(self.narrow(x).mean((2, 3)).relu()).relu())


def test_every_session_of_onnx_runtime_computes_the_file(contract: Contract, tmp_path: Path) -> None:
    """A scale of float16 does not hold the product of an activation's and a weight's, nor float16 such biases."""
    from support.optimized import by_level
    from trt_cls.export.torch_to_onnx import onnx_from_module

    torch.manual_seed(0)
    model = onnx_from_module(Mobile().eval(), contract)
    layers = quantizable(model.proto)
    assert {node.op_type for node in model.proto.graph.node if node.name in layers} == {"Conv", "Gemm"}
    images = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    tensors = list(dict.fromkeys(name for names in layers.values() for name in names))
    ranges = {name: found.largest for name, found in measure_magnitudes(model.proto, tensors, [images]).items()}
    write_onnx(int8_from_fp32(model, ranges, layers), tmp_path / "int8.onnx")
    found = by_level(tmp_path / "int8.onnx", images)
    for level, answers in {**found, "ours": open_engine(tmp_path / "int8.onnx", "cpu").infer(images)}.items():
        np.testing.assert_allclose(answers, found["ORT_DISABLE_ALL"], atol=0.01, err_msg=level)


def test_sums_that_exceed_16_bits_are_those_of_float() -> None:
    """Every product of a dense layer is 127·127: without VNNI two of them exceed what an integer kernel adds in."""
    from onnx import TensorProto, helper, numpy_helper

    from trt_cls.engines.onnxruntime import session_of

    weights = np.full((4, 64), 127, np.int8)
    scale, zero = np.float32(1.0), np.int8(0)
    values = {"w": weights, "s": scale, "z": zero, "sw": np.ones(4, np.float32), "zw": np.zeros(4, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input_1", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0),
        helper.make_node("Gemm", ["x", "wf"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "full",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (found,) = session_of(model).run(None, {"input_1": np.full((3, 64), 127, np.float32)})
    assert (found == 64 * 127 * 127).all()
