# ruff: noqa: D102 (the class says what `forward` does)
"""Layers that compute what INT8 will: their inputs and weights rounded, gradients as if they were not.

The same layers and the same rounding as `export` writes as Q/DQ: symmetric, weights by output channel, activations by
tensor with a range of their own, both inputs of a residual addition. A weight's range is its largest magnitude, which
the normalisation folded into it at export scales with it. Where ranges come from is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trt_cls.errors import ArtefactError
from trt_cls.models.int8_ranges import LARGEST, SCALE, SMALLEST_SCALE, Histogram
from trt_cls.models.network import Add


class QuantizedConv2d(nn.Conv2d):
    """A convolution in INT8."""

    input_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        images, weight = rounded(input, self.input_scale[0]), rounded_by_output(self.weight)
        output: Tensor = self._conv_forward(images, weight, self.bias)
        return output


class QuantizedLinear(nn.Linear):
    """A dense layer in INT8."""

    input_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(rounded(input, self.input_scale[0]), rounded_by_output(self.weight), self.bias)


class QuantizedAdd(Add):
    """A residual addition whose inputs are INT8."""

    input_scale: Tensor

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return rounded(first, self.input_scale[0]) + rounded(second, self.input_scale[1])


TWINS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    Add: QuantizedAdd,
}
PLAIN = {twin: plain for plain, twin in TWINS.items()}


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """`values` on INT8's grid, whose step is `scale`; beyond its ends there is no gradient."""
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, -LARGEST - 1, LARGEST)


def rounded_by_output(weight: Tensor) -> Tensor:
    """`weight` [outputs,…] on INT8's grid, each output's largest magnitude being its largest number."""
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.dim())))
    # what is all zero stays so
    steps = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -LARGEST, LARGEST)


def measured(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[Histogram, ...]]:
    """The layers of `network` that INT8 can compute, in the order they run, with the magnitudes of their inputs.

    Layers that run more than once, and dense ones over more than one vector an image, stay as they are: the exported
    graph has other nodes for them. `batches` are of images on the network's device.

    Raises:
        ArtefactError: an input holds no numbers.
    """
    found: dict[str, tuple[Histogram, ...]] = {}
    runs: Counter[str] = Counter()

    def noted(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if isinstance(layer, nn.Linear) and inputs[0].dim() != 2:
            return
        histograms = found.setdefault(name, tuple(Histogram() for _ in inputs))
        for histogram, values in zip(histograms, inputs, strict=True):
            if not values.isfinite().all():
                raise ArtefactError(
                    f"{name} of the network reads NaN or infinity for a training image; expected numbers; "
                    "look at the training that pretrained_model_path is from"
                )
            histogram.add(values.float().cpu().numpy())

    layers = [(name, layer) for name, layer in network.named_modules() if type(layer) in TWINS]
    hooks = [layer.register_forward_pre_hook(partial(noted, name)) for name, layer in layers]
    try:
        with torch.no_grad():
            for images in batches:
                runs[""] += 1
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: histograms for name, histograms in found.items() if runs[name] == runs[""]}


def quantize_layers(network: nn.Module, ranges: Mapping[str, Sequence[float]]) -> None:
    """Makes the layers named by `ranges` compute in INT8, with the largest magnitude of each of their inputs.

    The scales are numbers that float16 has, as the exported file keeps them.
    """
    device = next(network.parameters()).device
    for name, largest in ranges.items():
        scale = (torch.tensor(largest) / LARGEST).clamp_min(SMALLEST_SCALE).half().float()
        _turn(network.get_submodule(name), scale.to(device))


def quantize_like(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Makes the layers compute in INT8 whose scales are among tensors of these `shapes`; they are to be loaded."""
    for name, layer in list(network.named_modules()):
        if type(layer) in TWINS and (shape := shapes.get(name + SCALE)):
            _turn(layer, torch.ones(tuple(shape)))


def trained_ranges(network: nn.Module) -> dict[str, tuple[float, ...]]:
    """The layers of `network` that compute in INT8, with the largest magnitude of each of their inputs."""
    return {
        name: tuple((LARGEST * layer.get_buffer("input_scale").double()).tolist())
        for name, layer in network.named_modules()
        if type(layer) in PLAIN
    }


def restore_layers(network: nn.Module) -> None:
    """Makes all layers compute in float again, in place."""
    for layer in network.modules():
        if type(layer) in PLAIN:
            layer.__class__ = PLAIN[type(layer)]
            del layer.input_scale


def _turn(layer: nn.Module, scale: Tensor) -> None:
    # not a new layer in its place: hooks, parameters and whoever holds it stay
    layer.__class__ = TWINS[type(layer)]
    layer.register_buffer("input_scale", scale)
