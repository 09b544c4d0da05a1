"""The operators that the layers of a network become in its ONNX graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

OPERATORS = {
    "Conv2d": ("Conv",),
    "Linear": ("Gemm",),
    "ReLU": ("Relu",),
    "LeakyReLU": ("LeakyRelu",),
    "Sigmoid": ("Sigmoid",),
    "SiLU": ("Sigmoid", "Mul"),
    "Multiply": ("Mul",),
    "Add": ("Add",),
    "Concatenate": ("Concat",),
    "SecondHalf": ("Slice",),
    "MaxPool2d": ("MaxPool",),
    "GlobalAverage": ("ReduceMean",),
}
"""What each kind of layer becomes."""
FOLDED = {"BatchNorm2d", "ZeroPad2d", "SampleDropout"}
"""Normalization and padding are folded into a convolution, and dropout is left out."""


def wanted_operators(network: Any) -> Counter[str]:
    """The operators of the exported graph, with softmax: a node more is one that the exporter left over."""
    layers = [type(layer).__name__ for layer in network.children()]
    assert set(layers) <= OPERATORS.keys() | FOLDED
    return Counter(operator for layer in layers for operator in OPERATORS.get(layer, ())) + Counter({"Softmax": 1})
