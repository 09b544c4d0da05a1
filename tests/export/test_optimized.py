"""INT8 is computed in float arithmetic on every processor: integer kernels saturate on those without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import Contract
from trt_cls.export.int8.layers import quantizable
from trt_cls.export.int8.qdq import int8_from_fp32, measure_magnitudes, with_qdq
from trt_cls.preprocessing.description import default_preprocessing_of_tao
from trt_cls.spec.experiment import ModelConfig

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def transformer() -> OnnxModel:
    """A vision transformer of six small blocks."""
    pytest.importorskip("timm")
    from trt_cls.export.onnx_file import onnx_from_module
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
