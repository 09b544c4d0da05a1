"""That each layer which is trained as INT8 computes is found in the graph, with the ranges of what its node reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from torch import Tensor, nn

from trt_cls.contract import INPUT
from trt_cls.engines.onnxruntime import session_of
from trt_cls.export.int8.layers import quantizable
from trt_cls.export.int8.qdq import trained_layers
from trt_cls.models.int8_layers import measured_ranges, quantize_layers, restore_layers, trained_ranges
from trt_cls.models.int8_ranges import SMALLEST_SCALE


def in_int8(network: nn.Module, images: Tensor) -> nn.Module:
    """The network, computing in INT8 with the ranges of `images`."""
    found = measured_ranges(network, [images])
    quantize_layers(network, {name: [part.largest for part in parts] for name, parts in found.items()})
    return network


def assert_layers_find_their_nodes(
    network: nn.Module, images: Tensor, graph: onnx.ModelProto, *, all_layers: bool = True
) -> None:
    """`graph` is that of the float network; `all_layers`: those that INT8 takes without a training, and no others."""
    ranges = trained_ranges(in_int8(network, images))
    restore_layers(network)
    thresholds, layers = trained_layers(graph, ranges)
    if all_layers:
        assert layers == list(quantizable(graph)), "the same layers as without training"
    assert len(layers) == len(ranges)
    inside = [name for name in thresholds if name != INPUT]
    values = session_of(graph, inside).run(inside, {INPUT: images.numpy()})
    smallest = 127 * SMALLEST_SCALE  # that the file keeps
    largest = {name: max(float(np.abs(value).max()), smallest) for name, value in zip(inside, values, strict=True)}
    # rounded to float16's steps, and float32's sums in another order
    assert {name: thresholds[name] for name in inside} == pytest.approx(largest, rel=2e-3)
