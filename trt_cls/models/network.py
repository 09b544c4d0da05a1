# ruff: noqa: D102 (the class says what `forward` does)
"""A network as a list of named layers with what feeds each, and the layers that PyTorch has no module for.

Layers are children of the root under TAO's layer names, so that weights are `conv1.weight`, `bn_conv1.running_mean`.
Their numbers of channels can be changed (`resize_layers`), as pruning needs. Does not know: families, files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from trt_cls.contract import INPUT
from trt_cls.errors import one_line


@dataclass(frozen=True)
class NamedLayer:
    """One layer: its name, its module and the names of the layers (or `INPUT`) that feed it."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


class _Step(NamedTuple):
    name: str
    inputs: tuple[str, ...]
    done_with: tuple[str, ...]
    """Layers whose values no later step reads."""


class Network(nn.Module):
    """Computes logits from images, layer by layer in the order given; the last layer gives the logits."""

    def __init__(
        self,
        layers: Sequence[NamedLayer],
        input_shape: tuple[int, int, int],
        *,
        freeze_bn: bool = False,
        tao_pooling: bool = False,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        """Channels, height, width; heads that flatten a map work only at this size."""
        self.freeze_bn = freeze_bn
        self.tao_pooling = tao_pooling
        for layer in layers:
            self.add_module(layer.name, layer.module)
        self.steps = _steps(layers)
        self._parts: tuple[tuple[_Step, ...], ...] = ()
        """Of `steps`, whose values are computed again in the backward pass; empty: all values are kept."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, classes], softmax not included."""
        if not self._parts or not self.training:
            return self._values(self.steps, INPUT, images)
        name, value = INPUT, images
        for part in self._parts:
            contexts = partial(self._contexts, part)
            value = checkpoint(self._values, part, name, value, use_reentrant=False, context_fn=contexts)
            name = part[-1].name
        return value

    def _values(self, steps: Sequence[_Step], name: str, value: Tensor) -> Tensor:
        """The value of the last of `steps` from that of layer `name`, the only one before them that they read."""
        values = {name: value}
        for step in steps:
            values[step.name] = getattr(self, step.name)(*(values[name] for name in step.inputs))
            for done in step.done_with:
                del values[done]
        return values[steps[-1].name]

    def set_grad_checkpointing(self) -> None:
        """Keeps some √n values for the backward pass, which computes those between them again; the name is timm's.

        Outputs, gradients and statistics stay the same to the bit.
        """
        self._parts = _parts(self.steps)
        for layer in self.children():
            if isinstance(layer, REUSING):  # what it reads may be one of them; reuse_memory knows
                layer.inplace = False

    def _contexts(self, part: Sequence[_Step]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Those in which `part` is computed first, and again."""
        return nullcontext(), _statistics_kept([getattr(self, step.name) for step in part])

    def reuse_memory(self) -> None:
        """Lets each ReLU write into its input, where no other layer reads that and no gradient is computed from it.

        Outputs and gradients stay the same to the bit. SiLU and Mish keep their input for the gradient.
        """
        kept = {part[0].inputs[0] for part in self._parts}
        for step in self.steps:
            layer, made_by = getattr(self, step.name), getattr(self, step.inputs[0], None)
            reads_alone = step.done_with and step.inputs[0] not in kept
            if isinstance(layer, REUSING) and reads_alone and isinstance(made_by, UNUSED_OUTPUT):
                layer.inplace = True

    def set_drop_path(self, most: float) -> None:
        """Scales the rates of stochastic depth so that the highest, that of the last block, is `most`."""
        drops = [layer for layer in self.children() if isinstance(layer, SampleDropout)]
        highest = max(drop.rate for drop in drops)
        for drop in drops:
            drop.rate *= most / highest

    def train(self, mode: bool = True) -> Network:
        """Sets the mode; with `freeze_bn`, batch normalization keeps its statistics, while gamma and beta learn."""
        super().train(mode)
        if self.freeze_bn:
            for module in self.children():
                if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                    module.eval()
        return self

    @property
    def head(self) -> str:
        """The name of the layer whose outputs are the classes."""
        return head_of(self)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return int(getattr(self, self.head).weight.shape[0])


def _parts(steps: Sequence[_Step]) -> tuple[tuple[_Step, ...], ...]:
    """About √n parts of `steps`, between which a single value is handed on."""
    ends, alive = [], {INPUT}
    for place, step in enumerate(steps[:-1], 1):
        alive = (alive | {step.name}) - set(step.done_with)
        if alive == {step.name}:
            ends.append(place)
    every = math.isqrt(len(ends)) or 1
    bounds = [0, *ends[every - 1 :: every], len(steps)]
    return tuple(tuple(steps[first:end]) for first, end in pairwise(bounds))


@contextmanager
def _statistics_kept(layers: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which `layers` compute a batch again, which is in batch normalization's statistics already."""
    learning = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in learning]
    for layer in learning:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(learning, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches


def head_of(module: nn.Module) -> str:
    """The name of the last convolution or dense layer of any network: the one whose outputs are the classes."""
    names: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return names[-1]


def _steps(layers: Sequence[NamedLayer]) -> tuple[_Step, ...]:
    last_reader = {name: layer.name for layer in layers for name in layer.inputs}
    return tuple(
        _Step(
            layer.name,
            layer.inputs,
            tuple(name for name in dict.fromkeys(layer.inputs) if last_reader[name] == layer.name),
        )
        for layer in layers
    )


class ParameterCounts(NamedTuple):
    """Numbers of parameters, counted as Keras does."""

    trainable: int
    total: int
    """With frozen weights and the running statistics of batch normalization."""


def count_parameters(module: nn.Module) -> ParameterCounts:
    """The numbers of parameters of any network."""
    parameters = list(module.parameters())
    statistics = sum(
        buffer.numel() for name, buffer in module.named_buffers() if name.endswith((".running_mean", ".running_var"))
    )
    return ParameterCounts(
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in parameters) + statistics,
    )


def multiply_adds(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Those of convolutions, dense layers and matrix products for one image; `module` is on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, *input_shape, device="meta"))
    total: int = counter.get_total_flops()
    return total // 2


class Add(nn.Module):
    """The sum of its inputs."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Multiply(nn.Module):
    """The product of its inputs; a map of 1×1 is broadcast."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


class Concatenate(nn.Module):
    """Concatenates its inputs along the channels."""

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
    """Stochastic depth: drops a residual branch for single samples, in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, value: Tensor) -> Tensor:
        if not self.training:
            return value
        return value * functional.dropout(value.new_ones(value.shape[0], 1, 1, 1), self.rate)


REUSING = (nn.ReLU, nn.LeakyReLU)
"""Layers whose gradient needs their output alone."""
UNUSED_OUTPUT = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.SyncBatchNorm, Add)
"""Layers that make a new tensor, which their own gradient does not need."""


def glorot_uniform(weight: Tensor) -> None:
    """Keras' default for convolutions and dense layers."""
    nn.init.xavier_uniform_(weight)


def scaled_by_fan_out(weight: Tensor) -> None:
    """EfficientNet's convolutions: normal with variance 2 / (k · k · out), truncated at two standard deviations.

    Keras counts one output for a depthwise kernel, whose weight here is [channels, 1, k, k].
    """
    outputs, inputs, *kernel = weight.shape
    fan_out = math.prod(kernel) * (1 if inputs == 1 else outputs)
    deviation = math.sqrt(2 / fan_out) / 0.87962566103423978  # the deviation of a standard normal truncated at ±2
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def resize_layers(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Resizes layers for tensors of these `shapes`, by their names in the state dict; returns the layers that changed.

    Only convolutions (except their kernel size), dense layers and batch normalizations change. New weights are zeros.
    Does not check whether the layers still fit each other; `require_answers` does.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)]
    return tuple(name for name, layer in layers if _resize_layer(layer, name, shapes))


def require_answers(module: nn.Module, input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Runs the network on one image.

    Raises:
        ValueError: its layers do not fit each other, or its output is not one logit per class.
    """
    training = module.training
    try:
        with torch.no_grad():
            answer = module.eval()(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"its layers do not fit each other or the input: {one_line(error)}") from error
    finally:
        module.train(training)
    if not isinstance(answer, torch.Tensor) or answer.shape != (1, num_classes):
        found = list(answer.shape[1:]) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ValueError(f"it gives {found} logits for {num_classes} classes")


def _resize_layer(layer: nn.Module, name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    changed = False
    for key, old in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        shape = shapes.get(f"{name}.{key}")
        if shape is None or tuple(shape) == old.shape or len(shape) != old.dim() or tuple(shape[2:]) != old.shape[2:]:
            continue
        new = old.new_zeros(tuple(shape))
        setattr(layer, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        changed = True
    if changed:
        _set_numbers(layer)
    return changed


def _set_numbers(layer: nn.Module) -> None:
    """Sets the size attributes of a layer from its tensors."""
    if isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.weight.shape[:2]
        if 1 < layer.groups == layer.in_channels:
            layer.groups = outputs
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(layer.running_mean if layer.running_mean is not None else layer.weight)
