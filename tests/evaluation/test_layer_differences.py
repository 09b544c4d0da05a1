from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.tiny_models import CONTRACT, SIZE, write_onnx
from trt_cls.contract import METADATA_KEY
from trt_cls.errors import ArtefactError, RequestError
from trt_cls.evaluation.layer_differences import bound, compare_layers, first_beyond, noisiest

IMAGES = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)


def write_network(path: Path, kind: type = np.float32, change: tuple[str, float] | None = None) -> Path:
    """Three convolutions and a dense layer; one weight of `change` is moved by its amount."""
    random = np.random.default_rng(7)
    shapes = {"a": (4, 3, 3, 3), "b": (4, 4, 3, 3), "c": (4, 4, 3, 3), "dense": (4, 3)}
    weights = {name: random.normal(scale=0.4, size=shape).astype(np.float32) for name, shape in shapes.items()}
    if change:
        weights[change[0]].flat[-2] += change[1]
    nodes, last = [], "input_1"
    if kind is np.float16:
        nodes.append(helper.make_node("Cast", [last], ["half"], to=TensorProto.FLOAT16))
        last = "half"
    for name in "abc":
        nodes.append(helper.make_node("Conv", [last, name], [f"conv_{name}"], name=f"node_{name}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv_{name}"], [f"relu_{name}"], name=f"relu_{name}"))
        last = f"relu_{name}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"], name="node_dense"),
    ]
    if kind is np.float16:
        nodes.append(helper.make_node("Cast", ["logits"], ["full"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Softmax", ["full" if kind is np.float16 else "logits"], ["predictions"]))
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(values.astype(kind), name) for name, values in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    precision = "fp16" if kind is np.float16 else "fp32"
    helper.set_model_props(model, {METADATA_KEY: replace(CONTRACT, precision=precision).to_json()})
    onnx.save(model, path)
    return path


def test_a_file_agrees_with_itself_exactly(tmp_path: Path) -> None:
    path = write_network(tmp_path / "a.onnx")
    found = compare_layers(path, path, IMAGES)
    assert [layer.tensor for layer in found][:3] == ["conv_a", "relu_a", "conv_b"]
    assert len(found) == 10
    assert {layer.difference for layer in found} == {0}
    assert not any(layer.weights for layer in found)


@pytest.mark.parametrize("name", ["a", "b", "c", "dense"])
def test_one_other_weight_names_its_layer(tmp_path: Path, name: str) -> None:
    a, b = write_network(tmp_path / "a.onnx"), write_network(tmp_path / "b.onnx", change=(name, 0.01))
    found = compare_layers(a, b, IMAGES)
    first = first_beyond(found, bound("fp32", "fp32"))
    assert first
    assert (first.node, first.weights) == (f"node_{name}", (name,))
    assert [layer.node for layer in found if layer.weights] == [f"node_{name}"]
    before = [layer.difference for layer in found[: found.index(first)]]
    assert before == [0] * len(before)


def test_float16_is_no_difference_and_a_planted_one_is(tmp_path: Path) -> None:
    full = write_network(tmp_path / "full.onnx")
    half = write_network(tmp_path / "half.onnx", np.float16)
    found = compare_layers(full, half, IMAGES)
    limit = bound("fp32", "fp16")
    assert first_beyond(found, limit) is None
    assert 0 < max(layer.difference for layer in found) < limit / 3
    assert not any(layer.weights for layer in found)
    other = write_network(tmp_path / "other.onnx", np.float16, ("b", 0.8))
    first = first_beyond(compare_layers(full, other, IMAGES), limit)
    assert first
    assert (first.node, first.weights) == ("node_b", ("b",))


def test_a_nan_is_a_difference(tmp_path: Path) -> None:
    a, b = write_network(tmp_path / "a.onnx"), write_network(tmp_path / "b.onnx", change=("b", float("nan")))
    first = first_beyond(compare_layers(a, b, IMAGES), 1e9)
    assert first
    assert first.node == "node_b"


def test_other_networks_are_refused(tmp_path: Path) -> None:
    other, checkpoint = write_onnx(tmp_path / "other.onnx"), tmp_path / "model.safetensors"
    with pytest.raises(ArtefactError, match=r"expected two files of one network|no files of one network"):
        compare_layers(write_network(tmp_path / "a.onnx"), other, IMAGES)
    with pytest.raises(RequestError, match="between ONNX files only"):
        compare_layers(other, checkpoint, IMAGES)


def test_the_layer_that_adds_most_noise_is_named_though_later_ones_differ_too(tmp_path: Path) -> None:
    a, b = write_network(tmp_path / "a.onnx"), write_network(tmp_path / "b.onnx", change=("b", 0.05))
    worst = noisiest(compare_layers(a, b, IMAGES))
    assert worst is not None
    assert (worst.node, worst.added) == ("node_b", worst.noise)
    assert noisiest(compare_layers(a, a, IMAGES)) is None
