from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import Contract
from trt_cls.errors import ExportError
from trt_cls.export.fp16 import fp16_from_fp32

ort = pytest.importorskip("onnxruntime")


def test_no_layer_stays_in_float32(fp16: onnx.ModelProto) -> None:
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in fp16.graph.initializer}
    typed = {info.name: info.type.tensor_type.elem_type for info in fp16.graph.value_info}
    assert {typed[name] for node in fp16.graph.node[1:-2] for name in node.output} == {TensorProto.FLOAT16}


def test_input_output_and_softmax_stay_float32_between_two_casts(fp16: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(fp16, strict_mode=True)
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    ends = (fp16.graph.input[0], fp16.graph.output[0])
    assert {info.type.tensor_type.elem_type for info in ends} == {TensorProto.FLOAT}
    softmax = fp16.graph.node[-1]
    assert (softmax.op_type, types[softmax.input[0]]) == ("Softmax", TensorProto.FLOAT)
    assert [node.op_type for node in fp16.graph.node].count("Cast") == 2


def test_the_new_contract_says_fp16_and_the_source_is_left_alone(fp32: onnx.ModelProto, contract: Contract) -> None:
    before = fp32.SerializeToString()
    found = fp16_from_fp32(OnnxModel(fp32, contract)).contract
    assert found.precision == "fp16"
    assert found.differences(contract) == []
    assert fp32.SerializeToString() == before


def test_weights_are_those_of_an_independent_converter(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> None:
    float16 = pytest.importorskip("onnxconverter_common.float16")
    reference = float16.convert_float_to_float16(fp32, keep_io_types=True, max_finite_val=65504.0, min_positive_val=0.0)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in reference.graph.initializer}
    for tensor in fp16.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name], err_msg=tensor.name)


def changed(model: onnx.ModelProto, change: float) -> tuple[onnx.ModelProto, str]:
    """A copy with the first value of the first weight at `change`, and the weight's name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = copy.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = change
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy, tensor.name


@pytest.mark.parametrize("value", [65520.0, -1e6, float("inf"), float("nan")])
def test_a_weight_beyond_float16_is_refused_by_name(fp32: onnx.ModelProto, contract: Contract, value: float) -> None:
    model, name = changed(fp32, value)
    with pytest.raises(ExportError, match=f"{name}.*--fp16"):
        fp16_from_fp32(OnnxModel(model, contract))


def test_the_largest_float16_is_taken(fp32: onnx.ModelProto, contract: Contract) -> None:
    model, name = changed(fp32, 65504.0)
    (tensor,) = [
        tensor for tensor in fp16_from_fp32(OnnxModel(model, contract)).proto.graph.initializer if tensor.name == name
    ]
    assert numpy_helper.to_array(tensor).flat[0] == 65504.0


def test_weights_lost_to_zero_are_reported(
    fp32: onnx.ModelProto, contract: Contract, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-7), tensor.name))
    with caplog.at_level(logging.WARNING):
        fp16_from_fp32(OnnxModel(model, contract))
    assert "too small for float16" in caplog.text


def test_an_ordinary_network_is_converted_without_a_word(
    fp32: onnx.ModelProto, contract: Contract, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    fp16_from_fp32(OnnxModel(fp32, contract))
    assert (caplog.text, *capsys.readouterr()) == ("", "", "")


def test_a_graph_that_does_not_end_in_its_softmax_is_refused(fp32: onnx.ModelProto, contract: Contract) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    model.graph.node.pop()
    with pytest.raises(ExportError, match="expected the Softmax"):
        fp16_from_fp32(OnnxModel(model, contract))
