"""Builds a network layer by layer and tracks shapes; families are functions over a `Builder`.

Knows what NVIDIA's patched Keras means by its layers: padding "same" is k // 2 zeros on every side for convolutions,
(k - 1) // 2 for pooling, whatever the stride; average pooling counts the padded zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from trt_cls.contract import INPUT
from trt_cls.models.network import (
    Add,
    Concatenate,
    GlobalAverage,
    Multiply,
    NamedLayer,
    Network,
    SampleDropout,
    SecondHalf,
    glorot_uniform,
)
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import ModelConfig

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
}

Pair = tuple[int, int]


class MapTooSmallError(Exception):
    """A pooling window is larger than its map: the input image is too small for the family."""


@dataclass(frozen=True)
class Value:
    """The output of one layer: the layer's name and the shape without the batch."""

    layer: str
    channels: int
    height: int = 1
    width: int = 1


class Builder:
    """A network under construction: every method adds one layer that reads the given values and returns its output."""

    def __init__(
        self,
        config: ModelConfig,
        widths: Mapping[str, int],
        *,
        tao_pooling: bool = False,
        initialize: Callable[[Tensor], None] = glorot_uniform,
    ) -> None:
        self.config = config
        self.tao_pooling = tao_pooling
        self.input = Value(INPUT, *config.input_shape)
        self._widths = widths
        self._initialize = initialize
        self._layers: list[NamedLayer] = []
        self._unnamed: Counter[str] = Counter()
        self._frozen = False

    def network(self) -> Network:
        """The network; the last layer added gives its output."""
        return Network(
            self._layers, self.config.input_shape, freeze_bn=self.config.freeze_bn, tao_pooling=self.tao_pooling
        )

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """The layers added in this context are the block with this freeze id.

        If the spec's freeze_blocks names it, its convolutions and dense layers are frozen; batch normalization is not.
        """
        self._frozen = number in self.config.freeze_blocks
        yield
        self._frozen = False

    def conv(
        self,
        x: Value,
        name: str,
        filters: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool | None = None,
        padding: Pair | None = None,
    ) -> Value:
        """Convolution; by default `bias` is the spec's use_bias and `padding` is "same"."""
        filters = self._widths.get(name, filters) if groups == 1 else filters
        bias = self.config.use_bias if bias is None else bias
        padding = (kernel // 2, kernel // 2) if padding is None else padding
        module = nn.Conv2d(x.channels, filters, kernel, stride, padding, groups=groups, bias=bias)
        self._set_up(module, self._initialize)
        height, width = _swept((x.height, x.width), (kernel, kernel), (stride, stride), padding)
        return self._add(name, module, Value(name, filters, height, width), x)

    def depthwise_conv(
        self, x: Value, name: str, kernel: int, stride: int = 1, *, padding: Pair | None = None
    ) -> Value:
        """Convolution of each channel separately."""
        return self.conv(x, name, x.channels, kernel, stride, groups=x.channels, padding=padding)

    def batch_norm(self, x: Value, name: str) -> Value:
        """Batch normalization if the spec has use_batch_norm; otherwise nothing is added."""
        if not self.config.use_batch_norm:
            return x
        constants = self.config.batch_norm_config
        module = nn.BatchNorm2d(x.channels, eps=constants.epsilon, momentum=1 - constants.momentum)
        return self._add(name, module, Value(name, x.channels, x.height, x.width), x)

    def activation(self, x: Value, name: str | None = None, kind: str | None = None) -> Value:
        """Activation: `kind`, or the one in the spec, or the family's default."""
        asked = self.config.activation
        kind = kind or (asked.activation_type if asked else ARCHITECTURES[self.config.arch].activations[0])
        name = name or self._numbered("activation")
        return self._add(name, ACTIVATIONS[kind](), Value(name, x.channels, x.height, x.width), x)

    def conv_unit(
        self, x: Value, name: str, filters: int, kernel: int, stride: int = 1, *, bn: str, activation: str | None = None
    ) -> Value:
        """Convolution, batch normalization (named `bn`), activation."""
        return self.activation(self.batch_norm(self.conv(x, name, filters, kernel, stride), bn), activation)

    def max_pool(self, x: Value, kernel: int, stride: int, name: str | None = None) -> Value:
        """Max pooling.

        NVIDIA pads with zeros, PyTorch with -inf: the same after ReLU, which precedes every padded pooling of TAO's.

        Raises:
            MapTooSmallError: the map is smaller than the window.
        """
        name = name or self._numbered("max_pooling2d")
        window, step, padding = (kernel, kernel), (stride, stride), ((kernel - 1) // 2,) * 2
        return self._pool(x, name, nn.MaxPool2d(window, step, padding), window, step, padding)

    def average_pool(
        self, x: Value, kernel: Pair, stride: Pair, padding: Pair = (0, 0), name: str | None = None
    ) -> Value:
        """Average pooling; the average includes the padding."""
        name = name or self._numbered("average_pooling2d")
        return self._pool(x, name, nn.AvgPool2d(kernel, stride, padding), kernel, stride, padding)

    def _pool(self, x: Value, name: str, module: nn.Module, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        height, width = _swept((x.height, x.width), kernel, stride, padding)
        if min(height, width) < 1:
            raise MapTooSmallError(name)
        return self._add(name, module, Value(name, x.channels, height, width), x)

    def global_average(self, x: Value, name: str, *, keep_map: bool = False) -> Value:
        """The mean of each channel's map; flat, or 1×1 with `keep_map`."""
        return self._add(name, GlobalAverage(keep_map), Value(name, x.channels), x)

    def zero_pad(self, x: Value, name: str, vertical: Pair, horizontal: Pair) -> Value:
        """Zeros above and below, left and right."""
        module = nn.ZeroPad2d((*horizontal, *vertical))
        return self._add(name, module, Value(name, x.channels, x.height + sum(vertical), x.width + sum(horizontal)), x)

    def add(self, first: Value, second: Value, name: str | None = None) -> Value:
        """Element-wise sum."""
        name = name or self._numbered("add")
        return self._add(name, Add(), Value(name, first.channels, first.height, first.width), first, second)

    def multiply(self, x: Value, factors: Value, name: str) -> Value:
        """Each channel times its factor [N, C, 1, 1]."""
        return self._add(name, Multiply(), Value(name, x.channels, x.height, x.width), x, factors)

    def concatenate(self, *values: Value, name: str) -> Value:
        """Concatenation along the channels."""
        channels = sum(value.channels for value in values)
        return self._add(name, Concatenate(), Value(name, channels, values[0].height, values[0].width), *values)

    def second_half(self, x: Value, name: str) -> Value:
        """The second half of the channels."""
        return self._add(name, SecondHalf(), Value(name, x.channels - x.channels // 2, x.height, x.width), x)

    def dropout(self, x: Value, rate: float, name: str | None = None, *, by_sample: bool = False) -> Value:
        """Dropout of single values, or with `by_sample` of all values of a sample."""
        name = name or self._numbered("dropout")
        module = SampleDropout(rate) if by_sample else nn.Dropout(rate)
        return self._add(name, module, Value(name, x.channels, x.height, x.width), x)

    def flatten(self, x: Value, name: str = "flatten") -> Value:
        """Flattening, channel by channel, row by row; no effect on a flat value."""
        return self._add(name, nn.Flatten(), Value(name, x.channels * x.height * x.width), x)

    def dense(self, x: Value, name: str, units: int) -> Value:
        """Fully connected layer, with bias."""
        units = self._widths.get(name, units)
        module = nn.Linear(x.channels, units)
        self._set_up(module, glorot_uniform)
        return self._add(name, module, Value(name, units), x)

    def classifier(self, x: Value, num_classes: int) -> Value:
        """TAO's default head: global average pooling, then one dense layer."""
        return self.dense(self.global_average(x, "avg_pool"), "predictions", num_classes)

    def _set_up(self, module: nn.Conv2d | nn.Linear, initialize: Callable[[Tensor], None]) -> None:
        initialize(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        module.requires_grad_(not self._frozen)

    def _add(self, name: str, module: nn.Module, output: Value, *inputs: Value) -> Value:
        self._layers.append(NamedLayer(name, module, tuple(value.layer for value in inputs)))
        return output

    def _numbered(self, kind: str) -> str:
        """Keras' default name of a layer, as in add_1, add_2."""
        self._unnamed[kind] += 1
        return f"{kind}_{self._unnamed[kind]}"


def _swept(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """Height and width of a convolution's or pooling's output."""
    height, width = (
        (side + 2 * pad - k) // step + 1 for side, k, step, pad in zip(size, kernel, stride, padding, strict=True)
    )
    return height, width
