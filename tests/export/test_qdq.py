from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.contract import Contract
from trt_cls.engines import open_engine
from trt_cls.errors import ExportError
from trt_cls.export.int8.layers import first_and_last, quantizable
from trt_cls.export.int8.qdq import int8_from_fp32, measure_magnitudes
from trt_cls.export.sample_images import images_for

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def thresholds(fp32: onnx.ModelProto, contract: Contract, pictures: Path) -> dict[str, float]:
    tensors = {name for names in quantizable(fp32).values() for name in names}
    images = images_for(contract.preprocessing, pictures)
    return {name: found.largest for name, found in measure_magnitudes(fp32, sorted(tensors), images.batches()).items()}


@pytest.fixture(scope="module")
def int8_model(fp32: onnx.ModelProto, contract: Contract, thresholds: dict[str, float]) -> OnnxModel:
    return int8_from_fp32(OnnxModel(fp32, contract), thresholds, quantizable(fp32))


@pytest.fixture(scope="module")
def int8(int8_model: OnnxModel) -> onnx.ModelProto:
    return int8_model.proto


def quantizer_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """The QuantizeLinear behind the DequantizeLinear that gives `tensor`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    dequantize = producers.get(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = producers[dequantize.input[0]]
    assert quantize.op_type == "QuantizeLinear"
    assert list(quantize.input[1:]) == list(dequantize.input[1:]), "one scale for both"
    return quantize


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_inputs_and_weights_of_every_layer_and_both_inputs_of_every_addition_are_quantized(
    int8: onnx.ModelProto,
) -> None:
    values = constants(int8)
    layers = [node for node in int8.graph.node if node.op_type in ("Conv", "Gemm", "Add")]
    layers = [node for node in layers if not node.name.endswith("_bias")]
    assert len(layers) == len(quantizable(int8)) + 13 + 1  # with their Q/DQ, weights are no constants any more
    for node in layers:
        activations = node.input if node.op_type == "Add" else node.input[:1]
        for name in activations:
            quantize = quantizer_of(int8, name)
            assert quantize is not None, (node.name, name)
            assert values[quantize.input[1]].shape == ()
        if node.op_type != "Add":
            quantize = quantizer_of(int8, node.input[1])
            assert quantize is not None
            weights, scale = values[quantize.input[0]], values[quantize.input[1]]
            assert scale.shape == weights.shape[:1], "one for each output channel"
            np.testing.assert_allclose(scale, np.abs(weights.reshape(len(weights), -1)).max(1) / 127, rtol=2e-3)


def test_it_is_symmetric_and_all_else_is_float16(int8_model: OnnxModel) -> None:
    int8 = int8_model.proto
    values = constants(int8)
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            assert (values[node.input[2]].dtype, values[node.input[2]].any()) == (np.int8, False)
    assert {value.dtype.name for value in values.values()} == {"float16", "int8", "int64"}
    assert {info.type.tensor_type.elem_type for info in (int8.graph.input[0], int8.graph.output[0])} == {
        TensorProto.FLOAT
    }
    assert [node.op_type for node in int8.graph.node].count("Cast") == 2
    assert int8_model.contract.precision == "int8"
    assert int8.producer_name == "trt-cls"


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_the_file_answers_as_the_network_does(
    int8_model: OnnxModel, fp32: onnx.ModelProto, contract: Contract, pictures: Path, tmp_path: Path, provider: Any
) -> None:
    """8 bits for each of 13 layers: probabilities move by hundredths, and by tenths where a bias overflowed."""
    if provider == "openvino":
        pytest.importorskip("openvino")
    write_onnx(int8_model, tmp_path / "int8.onnx")
    write_onnx(OnnxModel(fp32, contract), tmp_path / "fp32.onnx")
    (batch,) = images_for(contract.preprocessing, pictures).batches()
    found, expected = (
        open_engine(tmp_path / name, by).infer(batch) for name, by in (("int8.onnx", provider), ("fp32.onnx", "cpu"))
    )
    assert 0 < np.abs(found - expected).max() < 0.08


def test_biases_beyond_float16_integers_survive_every_session_of_onnx_runtime(
    fp32: onnx.ModelProto, thresholds: dict[str, float], contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    """A layer of small weights and an ordinary bias, held against the same graph without any optimization."""
    from support.optimized import by_level

    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    (second,) = [node for node in model.graph.node if node.op_type == "Conv"][1:2]
    for tensor in model.graph.initializer:
        if tensor.name == second.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-2), tensor.name))
        elif tensor.name == second.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(40), tensor.name))
    wide = {name: 4 * value + 60 for name, value in thresholds.items()}
    path = tmp_path / "int8.onnx"
    write_onnx(int8_from_fp32(OnnxModel(model, contract), wide, [second.name, "".join(after(model, second))]), path)
    (batch,) = images_for(contract.preprocessing, pictures).batches()
    found = by_level(path, batch)
    for level, answers in {**found, "ours": open_engine(path, "cpu").infer(batch)}.items():
        np.testing.assert_allclose(answers, found["ORT_DISABLE_ALL"], atol=0.02, err_msg=level)


def after(model: onnx.ModelProto, node: onnx.NodeProto) -> list[str]:
    """The layer that reads the ReLU behind `node`, for the quantizer at its output."""
    (relu,) = [other for other in model.graph.node if node.output[0] in other.input]
    return [other.name for other in model.graph.node if other.input[0] == relu.output[0]][:1]


def test_ends_that_are_kept_are_not_quantized(
    fp32: onnx.ModelProto, contract: Contract, thresholds: dict[str, float]
) -> None:
    kept = first_and_last(fp32, ("first", "last"))
    layers = {node.name: node for node in fp32.graph.node}
    assert [layers[name].op_type for name in sorted(kept, key=list(layers).index)] == ["Conv", "Gemm"]
    assert first_and_last(fp32, ()) == set()
    layers_left = [name for name in quantizable(fp32) if name not in kept]
    mixed = int8_from_fp32(OnnxModel(fp32, contract), thresholds, layers_left).proto
    for node in mixed.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert (quantizer_of(mixed, node.input[1]) is None) == (node.name in kept)


def test_dead_channels_keep_a_scale_that_float16_can_hold(
    fp32: onnx.ModelProto, contract: Contract, thresholds: dict[str, float]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv_1.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values[0], values[1] = 0, 1e-9
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    scale = constants(int8_from_fp32(OnnxModel(model, contract), thresholds, quantizable(model)).proto)[
        f"{tensor.name}_scale"
    ]
    assert (scale >= 2.0**-16).all()


def test_nothing_to_quantize_is_an_error(
    fp32: onnx.ModelProto, contract: Contract, thresholds: dict[str, float]
) -> None:
    with pytest.raises(ExportError, match="--fp16"):
        int8_from_fp32(OnnxModel(fp32, contract), thresholds, [])
