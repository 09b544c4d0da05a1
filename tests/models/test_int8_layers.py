"""Rounding and its gradient, against ONNX Runtime's Q/DQ; which layers compute so, and what of them a file keeps."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from trt_cls.contract import Contract, Preprocessing  # noqa: E402
from trt_cls.errors import ArtefactError  # noqa: E402
from trt_cls.models import build  # noqa: E402
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from trt_cls.models.int8_layers import (  # noqa: E402
    measured_ranges,
    quantize_layers,
    restore_layers,
    rounded,
    rounded_by_output,
    trained_ranges,
)
from trt_cls.models.network import Add  # noqa: E402
from trt_cls.spec.experiment import ModelConfig  # noqa: E402

MODEL = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=True)


def by_onnx(values: Any, scale: Any, axis: int | None = None) -> Any:
    """`values` through QuantizeLinear and DequantizeLinear of ONNX Runtime, zero being zero."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
    ]
    scale = np.asarray(scale, np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "qdq",
        [info("x", TensorProto.FLOAT, values.shape)],
        [info("y", TensorProto.FLOAT, values.shape)],
        [onnx.numpy_helper.from_array(scale, "scale"),
         onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": values})[
        0
    ]


@settings(deadline=None)  # a busy machine is no fault
@given(st.floats(2**-16, 8, width=16), st.integers(0, 2**32 - 1))
def test_activations_are_rounded_as_q_dq_rounds_them(scale: float, seed: int) -> None:
    step = np.float32(scale)
    values = (np.random.default_rng(seed).normal(size=512) * 60 * scale).astype(np.float32)
    ties = (np.arange(-130, 130, dtype=np.float32) + np.float32(0.5)) * step
    values = np.concatenate([values, ties])
    found = rounded(torch.from_numpy(values), torch.tensor(scale)).numpy()
    # torch multiplies by 1/step where ONNX divides: a value within a rounding of the middle may go to the other side
    expected = by_onnx(values, step)
    middle = np.abs(values / step - np.floor(values / step) - 0.5) < 1e-4
    np.testing.assert_array_equal(found[~middle], expected[~middle])
    assert np.abs(found - expected).max() <= step * 1.001


def test_scales_are_float16s_own_and_not_below_what_the_file_keeps() -> None:
    network = build(MODEL, 3)
    quantize_layers(network, {"conv1": [1.0], "add_1": [0.0, 300.0]})
    assert network.get_buffer("conv1.input_scale").tolist() == [float(np.float16(1 / 127))]
    assert network.get_buffer("add_1.input_scale").tolist() == [2.0**-16, float(np.float16(300 / 127))]


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (6, 1, 5, 5), (5, 20)])
def test_weights_are_rounded_by_output_as_the_quantizer_does(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[1] *= 1e-3
    weight[2] = 0
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    expected = by_onnx(weight, np.where(scale == 0, 1, scale), axis=0)
    found = rounded_by_output(torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    assert len(np.unique(found[1])) > 3, "each output has a grid of its own"
    assert not found[2].any()


def test_gradients_pass_as_if_nothing_was_rounded_and_not_beyond_the_range() -> None:
    values = torch.tensor([-2.0, -0.9, 0.001, 0.5, 1.5], requires_grad=True)
    rounded(values, torch.tensor(1 / 127)).backward(torch.arange(1.0, 6.0))
    assert values.grad is not None
    assert values.grad.tolist() == [0, 2, 3, 4, 0]
    weight = torch.randn(4, 3, requires_grad=True)
    rounded_by_output(weight).backward(torch.ones(4, 3))
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


class Odd(nn.Module):
    """A layer for each reason to be left alone, and two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.twice = nn.Conv2d(3, 3, 1)
        self.tokens = nn.Linear(3, 4)
        self.own = type("OwnConv", (nn.Conv2d,), {})(3, 3, 1)
        self.never = nn.Linear(1, 1)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: Any) -> Any:
        x = self.conv(images)
        x = self.own(self.twice(self.twice(x)))
        return self.head(self.tokens(x.flatten(2).transpose(1, 2)).mean(dim=1))


def test_layers_are_found_in_the_order_they_run_with_all_that_they_read() -> None:
    network = Odd().eval()
    batches = [torch.rand(2, 3, 4, 4), -2 * torch.rand(1, 3, 4, 4)]
    found = measured_ranges(network, batches)
    assert list(found) == ["conv", "head"]
    (histogram,) = found["conv"]
    assert histogram.counts.sum() == 3 * 3 * 16
    assert histogram.largest == max(float(batch.abs().max()) for batch in batches)
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_a_network_of_ours_has_all_layers_with_weights_and_both_sides_of_additions() -> None:
    torch.manual_seed(0)
    network = build(MODEL, 3).eval()
    found = measured_ranges(network, [torch.randn(2, 3, 16, 16)])
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear | Add)]
    assert sorted(found) == sorted(layers)
    assert {len(histograms) for name, histograms in found.items() if name.startswith("add")} == {2}


def test_a_network_that_overflows_is_refused() -> None:
    network = build(MODEL, 3).eval()
    network.get_submodule("bn_conv1").running_mean.fill_(-float("inf"))  # type: ignore[union-attr]
    with pytest.raises(ArtefactError, match="reads NaN or infinity for a training image"):
        measured_ranges(network, [torch.randn(2, 3, 16, 16)])
    assert not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.fixture
def ranges() -> dict[str, tuple[float, ...]]:
    network = build(MODEL, 3).eval()
    torch.manual_seed(0)
    found = measured_ranges(network, [torch.randn(2, 3, 16, 16)])
    return {name: tuple(histogram.largest for histogram in histograms) for name, histograms in found.items()}


def test_layers_compute_otherwise_and_come_back_to_the_bit(ranges: dict[str, tuple[float, ...]]) -> None:
    torch.manual_seed(1)
    network, images = build(MODEL, 3).eval(), torch.randn(4, 3, 16, 16)
    before, names = network(images), set(network.state_dict())
    quantize_layers(network, ranges)
    for name, parts in trained_ranges(network).items():
        assert parts == pytest.approx(ranges[name], rel=2**-11), name
    assert set(network.state_dict()) - names == {f"{name}.input_scale" for name in ranges}
    assert 0 < (network(images) - before).abs().max() < 1
    assert torch.equal(deepcopy(network)(images), network(images))
    restore_layers(network)
    assert torch.equal(network(images), before)
    assert set(network.state_dict()) == names
    assert trained_ranges(network) == {}


@pytest.mark.parametrize("arch", ["resnet", "torchvision/mobilenet_v3_small"])
def test_a_checkpoint_keeps_the_ranges(arch: str, tmp_path: Path) -> None:
    if arch.startswith("torchvision"):
        pytest.importorskip("torchvision")
    model = ModelConfig(arch=arch, n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
    torch.manual_seed(1)
    network, images = build(model, 3).eval(), torch.randn(4, 3, 32, 32)
    found = measured_ranges(network, [images])
    quantize_layers(network, {name: [part.largest for part in parts] for name, parts in found.items()})
    preprocessing = Preprocessing(3, 32, 32, "none", "bilinear", "rgb", 255.0, (0.0,) * 3, (1.0,) * 3)
    contract = Contract(model, preprocessing, ("a", "b", "c"), "int8")
    save_checkpoint(tmp_path / "int8.safetensors", network, contract)
    loaded = load_checkpoint(tmp_path / "int8.safetensors")
    assert loaded.contract == contract
    assert trained_ranges(loaded.module) == trained_ranges(network)
    assert torch.equal(loaded.module(images), network(images))


def test_a_scale_without_its_layer_is_reported(tmp_path: Path) -> None:
    network = build(MODEL, 3)
    network.get_submodule("bn_conv1").register_buffer("input_scale", torch.ones(1))
    preprocessing = Preprocessing(3, 16, 16, "none", "bilinear", "rgb", 255.0, (0.0,) * 3, (1.0,) * 3)
    save_checkpoint(tmp_path / "odd.safetensors", network, Contract(MODEL, preprocessing, ("a", "b", "c"), "int8"))
    with pytest.raises(ArtefactError, match=r"the first is bn_conv1.input_scale: found \[1\], expected none"):
        load_checkpoint(tmp_path / "odd.safetensors")
