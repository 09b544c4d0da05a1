# ruff: noqa: D102 (the class says what `forward` does)
"""The few layers that PyTorch has no module for; none of them has weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Add(nn.Module):
    """The sum of its inputs."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Multiply(nn.Module):
    """The product of its inputs; a map of 1×1 counts for every pixel."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


class Concatenate(nn.Module):
    """Its inputs one after the other along the channels."""

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, dim=1)


class SecondHalf(nn.Module):
    """The second half of the channels."""

    def forward(self, value: Tensor) -> Tensor:
        return value[:, value.shape[1] // 2 :]


class GlobalAverage(nn.Module):
    """The mean of each channel's map: [N, C, H, W] to [N, C], or to [N, C, 1, 1] with `keep_map`."""

    def __init__(self, keep_map: bool = False) -> None:
        super().__init__()
        self.keep_map = keep_map

    def forward(self, value: Tensor) -> Tensor:
        return value.mean(dim=(2, 3), keepdim=self.keep_map)


class SampleDropout(nn.Module):
    """Drops whole samples of a residual branch while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, value: Tensor) -> Tensor:
        if not self.training:
            return value
        return value * functional.dropout(value.new_ones(value.shape[0], 1, 1, 1), self.rate)


def glorot_uniform(weight: Tensor) -> None:
    """Keras' default for convolutions and dense layers."""
    nn.init.xavier_uniform_(weight)


def scaled_by_fan_out(weight: Tensor) -> None:
    """EfficientNet's convolutions: normal with variance 2 / (k · k · out), cut off at two deviations.

    Keras counts one output for a depthwise kernel, whose weight here is [channels, 1, k, k].
    """
    outputs, inputs, *kernel = weight.shape
    fan_out = math.prod(kernel) * (1 if inputs == 1 else outputs)
    deviation = math.sqrt(2 / fan_out) / 0.87962566103423978  # what cutting off at ±2 leaves of a deviation of 1
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
