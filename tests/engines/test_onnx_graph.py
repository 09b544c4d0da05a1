from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.tiny_models import write_onnx
from trt_cls.engines.onnx_graph import read_graph
from trt_cls.errors import ArtefactError


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[int]) -> Path:
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize(
    ("node", "weight", "shape", "multiply_adds"),
    [
        # 8·8 places of 16 outputs, each of 3·3·3 products
        (helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4), (16, 3, 3, 3), [3, 8, 8], 64 * 16 * 27),
        # stride 2 leaves 4·4 places; depthwise, so that each output sees one channel
        (
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, strides=[2, 2], group=6),
            (6, 1, 3, 3), [6, 8, 8], 16 * 6 * 9,
        ),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (20, 7), [20], 140),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (7, 20), [20], 140),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (20, 7), [5, 20], 5 * 140),
        (helper.make_node("Add", ["x", "w"], ["y"]), (20,), [20], 0),
    ],
)  # fmt: skip
def test_multiply_adds_by_hand(
    tmp_path: Path, node: onnx.NodeProto, weight: tuple[int, ...], shape: list[int], multiply_adds: int
) -> None:
    (layer,) = read_graph(save(tmp_path / "a.onnx", [node], {"w": np.ones(weight, np.float32)}, shape)).layers
    assert (layer.multiply_adds, layer.parameters) == (multiply_adds, np.prod(weight))


@pytest.mark.parametrize("convolution_is_quantized", [True, False])
@pytest.mark.parametrize("weights_are_8_bits", [True, False])
def test_a_layer_between_quantized_tensors_computes_in_8_bits(
    tmp_path: Path, convolution_is_quantized: bool, weights_are_8_bits: bool
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        # float weights are quantized by the graph itself, as TensorRT has it
        *([] if weights_are_8_bits else [helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"])]),
        helper.make_node("DequantizeLinear", ["w" if weights_are_8_bits else "wq", "s", "z"], ["wd"]),
        helper.make_node("Conv", ["xd" if convolution_is_quantized else "x", "wd"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    kind = np.int8 if weights_are_8_bits else np.float32
    arrays = {"w": np.ones((5, 3, 1, 1), kind), "s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8)}
    graph = read_graph(save(tmp_path / "a.onnx", nodes, arrays, [3, 4, 4]))
    convolution, relu = graph.layers[-2:]
    assert convolution.type == ("int8" if convolution_is_quantized else "float32")
    assert (convolution.parameters, convolution.multiply_adds, relu.type) == (15, 16 * 15, "float32")
    assert sum(layer.parameters for layer in graph.layers) == 15
    assert graph.weights == ({"int8": 16, "float32": 1} if weights_are_8_bits else {"float32": 16, "int8": 1})


def test_inputs_and_outputs_keep_the_batch(tmp_path: Path) -> None:
    graph = read_graph(write_onnx(tmp_path / "a.onnx"))
    assert [(t.name, t.type, t.shape) for t in (*graph.inputs, *graph.outputs)] == [
        ("input_1", "float32", ("N", 3, 16, 16)), ("predictions", "float32", ("N", 3)),
    ]  # fmt: skip


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(ArtefactError, match=r"a.onnx: (no sound|is truncated or no) ONNX file"):
        read_graph(tmp_path / "a.onnx")
