"""Deterministic weights and input, as the recorded forward passes were made with (Keras layouts, then transposed)."""

from __future__ import annotations

from math import prod, sqrt
from zlib import crc32

import numpy as np
import torch
from numpy.random import RandomState
from torch import nn

Arrays = list[np.ndarray]


def kernel_and_bias(name: str, shape: tuple[int, ...], bias: bool) -> Arrays:
    """A convolution's (kh, kw, in, out) or a dense layer's (in, out) kernel, and its bias."""
    r = RandomState(crc32(name.encode()))
    kernel = r.randn(*shape) * sqrt(2 / prod(shape[:-1])) * r.uniform(0.05, 1, shape[-1])
    return _float32([kernel] + ([0.05 * r.randn(shape[-1])] if bias else []))


def depthwise_kernel_and_bias(name: str, shape: tuple[int, ...], bias: bool) -> Arrays:
    """A depthwise convolution's (kh, kw, channels, 1) kernel, and its bias."""
    r = RandomState(crc32(name.encode()))
    channels = shape[2]
    kernel = r.randn(*shape) * sqrt(2 / prod(shape[:2])) * r.uniform(0.05, 1, channels)[:, None]
    return _float32([kernel] + ([0.05 * r.randn(channels)] if bias else []))


def batch_norm(name: str, channels: int) -> Arrays:
    """gamma, beta, moving mean, moving variance."""
    r = RandomState(crc32(name.encode()))
    return _float32(
        [r.uniform(0.5, 1.5, channels), 0.1 * r.randn(channels), 0.1 * r.randn(channels), r.uniform(0.5, 1.5, channels)]
    )


def images(shape: tuple[int, int, int]) -> np.ndarray:
    return RandomState(7).uniform(-1, 1, (2, *shape)).astype(np.float32) * 2


def fill(network: nn.Module) -> nn.Module:
    """Gives every layer the weights that the recipe derives from its name; returns the network in eval mode."""
    with torch.no_grad():
        for name, module in network.named_children():
            for target, array in zip(_targets(module), _arrays(name, module), strict=True):
                target.copy_(torch.from_numpy(array))
    return network.eval()


def _targets(module: nn.Module) -> list[torch.Tensor]:
    if isinstance(module, nn.BatchNorm2d):
        return [module.weight, module.bias, module.running_mean, module.running_var]
    return list(module.parameters())


def _arrays(name: str, module: nn.Module) -> Arrays:
    if isinstance(module, nn.BatchNorm2d):
        return batch_norm(name, module.num_features)
    if isinstance(module, nn.Linear):
        kernel, *bias = kernel_and_bias(name, tuple(module.weight.T.shape), module.bias is not None)
        return [kernel.T, *bias]
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        keras_shape = tuple(
            module.weight.permute(2, 3, 0, 1).shape if depthwise else module.weight.permute(2, 3, 1, 0).shape
        )
        make = depthwise_kernel_and_bias if depthwise else kernel_and_bias
        kernel, *bias = make(name, keras_shape, module.bias is not None)
        return [kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1), *bias]
    return []


def _float32(arrays: Arrays) -> Arrays:
    return [array.astype(np.float32) for array in arrays]
