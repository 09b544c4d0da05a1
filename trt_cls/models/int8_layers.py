# ruff: noqa: D102 (the class says what `forward` does)
"""INT8 fake quantization: layers that round their inputs and weights as INT8 will, with straight-through gradients.

The same layers and the same rounding as `export` writes as Q/DQ: symmetric, weights per output channel, activations per
tensor, both inputs of a residual addition. A weight's range is its largest magnitude, with which the normalization that
export folds into it scales. Does not know: where activation ranges come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.errors import ArtefactError
from trt_cls.models.int8_ranges import LARGEST, NARROW, SCALE, SMALLEST_SCALE, Histogram
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


QUANTIZED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    Add: QuantizedAdd,
}
"""The class in INT8 for each class in float."""
FLOAT = {quantized: plain for plain, quantized in QUANTIZED.items()}


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """`values` rounded to multiples of `scale` within INT8's range; the gradient beyond that range is 0."""
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, -LARGEST - 1, LARGEST)


def rounded_by_output(weight: Tensor) -> Tensor:
    """`weight` [outputs,…] rounded to INT8, each output's largest magnitude becoming 127."""
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.dim())))
    # an output of zeros stays zero
    steps = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    zeros = torch.zeros_like(steps)  # torch reads integer zero points on the CPU to check them, and waits for the GPU
    return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -LARGEST, LARGEST)


def measured_ranges(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[Histogram, ...]]:
    """The layers of `network` that INT8 can compute, in execution order, with histograms of their inputs.

    Left out are layers that run more than once, for which the exported graph has other nodes, and dense ones with fewer
    than `NARROW` inputs or outputs, but for the last layer. `batches` are images on the network's device.

    Raises:
        ArtefactError: an input is NaN or infinite.
    """
    found: dict[str, tuple[Histogram, ...]] = {}
    runs: Counter[str] = Counter()

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        histograms = found.setdefault(name, tuple(Histogram() for _ in inputs))
        for histogram, values in zip(histograms, inputs, strict=True):
            if not values.isfinite().all():
                raise ArtefactError(
                    f"{name} of the network reads NaN or infinity for a training image; expected numbers; "
                    "look at the training that pretrained_model_path is from"
                )
            histogram.add(values.float().cpu().numpy())

    layers = [(name, layer) for name, layer in network.named_modules() if type(layer) in QUANTIZED]
    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers]
    try:
        with torch.no_grad():
            for images in batches:
                runs[""] += 1
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = [name for name in found if runs[name] == runs[""]]
    weighted = [name for name in found if not isinstance(network.get_submodule(name), Add)]
    return {name: found[name] for name in once if name in weighted[-1:] or not _narrow(network.get_submodule(name))}


def _narrow(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and min(layer.in_features, layer.out_features) < NARROW


def quantize_layers(network: nn.Module, ranges: Mapping[str, Sequence[float]]) -> None:
    """Replaces the layers named in `ranges`, which has the largest magnitude of each input, by quantized ones.

    The scales are float16 numbers, as the exported file keeps them.
    """
    device = next(network.parameters()).device
    for name, largest in ranges.items():
        scale = (torch.tensor(largest) / LARGEST).clamp_min(SMALLEST_SCALE).half().float()
        _quantize(network, name, scale.to(device))


def quantize_like(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Replaces the layers whose scales are among tensors of these `shapes` by quantized ones, ready to be loaded."""
    for name, layer in list(network.named_modules()):
        if type(layer) in QUANTIZED and (shape := shapes.get(name + SCALE)):
            _quantize(network, name, torch.ones(tuple(shape)))


def trained_ranges(network: nn.Module) -> dict[str, tuple[float, ...]]:
    """The quantized layers of `network`, with the largest magnitude of each of their inputs."""
    return {
        name: tuple((LARGEST * layer.get_buffer("input_scale").double()).tolist())
        for name, layer in network.named_modules()
        if type(layer) in FLOAT
    }


def restore_layers(network: nn.Module) -> None:
    """Replaces all quantized layers by float ones again, in place."""
    for name, layer in list(network.named_modules()):
        if type(layer) in FLOAT:
            network.set_submodule(name, _as(FLOAT[type(layer)], layer))


def _quantize(network: nn.Module, name: str, scale: Tensor) -> None:
    layer = network.get_submodule(name)
    quantized = _as(QUANTIZED[type(layer)], layer)
    quantized.register_buffer("input_scale", scale)
    network.set_submodule(name, quantized)


def _as(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    """A layer of class `kind` with the settings and the very parameters of `layer`."""
    settings: tuple[Any, ...] = ()
    if isinstance(layer, nn.Conv2d):
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
        settings = (*sizes, layer.groups, layer.bias is not None, layer.padding_mode)
    elif isinstance(layer, nn.Linear):
        settings = (layer.in_features, layer.out_features, layer.bias is not None)
    with torch.device("meta"):
        new = kind(*settings)
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(new, name, parameter)
    return new.train(layer.training)
