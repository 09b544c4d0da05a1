"""Writes down a network layer by layer, keeping track of shapes; families are functions over a `Builder`.

It knows what NVIDIA's patched Keras means by its layers: padding "same" is k // 2 zeros on every side for convolutions,
(k - 1) // 2 for pooling, whatever the stride; average pooling counts the padded zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from trt_cls.models.network import (
    INPUT,
    Add,
    Concatenate,
    GlobalAverage,
    Layer,
    Multiply,
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
    """Pooling has no pixels left to look at: the input image is too small for the family."""


@dataclass(frozen=True)
class Value:
    """What one layer puts out: the layer's name and the shape without the batch."""

    layer: str
    channels: int
    height: int = 1
    width: int = 1


class Builder:
    """A network under construction.

    Every method adds one layer that reads from the values it is given, and returns what it puts out.
    """

    def __init__(
        self,
        config: ModelConfig,
        widths: Mapping[str, int],
        *,
        tao_pooling: bool = False,
        initialise: Callable[[Tensor], None] = glorot_uniform,
    ) -> None:
        self.config = config
        self.tao_pooling = tao_pooling
        self.input = Value(INPUT, *config.input_shape)
        self._widths = widths
        self._initialise = initialise
        self._layers: list[Layer] = []
        self._unnamed: Counter[str] = Counter()
        self._frozen = False

    def network(self) -> Network:
        """What was built; the last layer added is the output."""
        return Network(
            self._layers, self.config.input_shape, freeze_bn=self.config.freeze_bn, tao_pooling=self.tao_pooling
        )

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """What is added meanwhile is the block with this freeze id.

        Its convolutions and dense layers don't learn where the spec's freeze_blocks names it; batch normalisation does.
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
        bias: bool | None = None,
        padding: Pair | None = None,
    ) -> Value:
        """Convolution; `bias` as the spec's use_bias, `padding` as "same", where they are not given."""
        return self._conv(x, name, self._widths.get(name, filters), kernel, stride, 1, bias, padding)

    def depthwise_conv(
        self, x: Value, name: str, kernel: int, stride: int = 1, *, padding: Pair | None = None
    ) -> Value:
        """Convolution of each channel by itself."""
        return self._conv(x, name, x.channels, kernel, stride, x.channels, None, padding)

    def _conv(
        self,
        x: Value,
        name: str,
        filters: int,
        kernel: int,
        stride: int,
        groups: int,
        bias: bool | None,
        padding: Pair | None,
    ) -> Value:
        bias = self.config.use_bias if bias is None else bias
        padding = (kernel // 2, kernel // 2) if padding is None else padding
        module = nn.Conv2d(x.channels, filters, kernel, stride, padding, groups=groups, bias=bias)
        self._set_up(module, self._initialise)
        height, width = _swept((x.height, x.width), (kernel, kernel), (stride, stride), padding)
        return self._add(name, module, Value(name, filters, height, width), x)

    def batch_norm(self, x: Value, name: str) -> Value:
        """Batch normalisation where the spec's use_batch_norm asks for it, else nothing."""
        if not self.config.use_batch_norm:
            return x
        constants = self.config.batch_norm_config
        module = nn.BatchNorm2d(x.channels, eps=constants.epsilon, momentum=1 - constants.momentum)
        return self._add(name, module, Value(name, x.channels, x.height, x.width), x)

    def activation(self, x: Value, name: str | None = None, kind: str | None = None) -> Value:
        """The activation that the spec asks for, or the family's own, or `kind`."""
        asked = self.config.activation
        kind = kind or (asked.activation_type if asked else ARCHITECTURES[self.config.arch].activations[0])
        name = name or self._numbered("activation")
        return self._add(name, ACTIVATIONS[kind](), Value(name, x.channels, x.height, x.width), x)

    def conv_unit(
        self, x: Value, name: str, filters: int, kernel: int, stride: int = 1, *, bn: str, activation: str | None = None
    ) -> Value:
        """Convolution, batch normalisation (named `bn`), activation."""
        return self.activation(self.batch_norm(self.conv(x, name, filters, kernel, stride), bn), activation)

    def max_pool(self, x: Value, kernel: int, stride: int, name: str | None = None) -> Value:
        """Max pooling.

        NVIDIA pads with zeros, PyTorch with -inf: the same after ReLU, which precedes wherever NVIDIA's families pad.

        Raises:
            MapTooSmallError: the map has fewer pixels than the window.
        """
        name = name or self._numbered("max_pooling2d")
        window, step, padding = (kernel, kernel), (stride, stride), ((kernel - 1) // 2,) * 2
        return self._pool(x, name, nn.MaxPool2d(window, step, padding), window, step, padding)

    def average_pool(
        self, x: Value, kernel: Pair, stride: Pair, padding: Pair = (0, 0), name: str | None = None
    ) -> Value:
        """Average pooling; the zeros of the padding count."""
        name = name or self._numbered("average_pooling2d")
        return self._pool(x, name, nn.AvgPool2d(kernel, stride, padding), kernel, stride, padding)

    def _pool(self, x: Value, name: str, module: nn.Module, kernel: Pair, stride: Pair, padding: Pair) -> Value:
        height, width = _swept((x.height, x.width), kernel, stride, padding)
        if min(height, width) < 1:
            raise MapTooSmallError(name)
        return self._add(name, module, Value(name, x.channels, height, width), x)

    def global_average(self, x: Value, name: str, *, keep_map: bool = False) -> Value:
        """The mean of each channel's whole map; what follows is flat unless `keep_map`."""
        return self._add(name, GlobalAverage(keep_map), Value(name, x.channels), x)

    def zero_pad(self, x: Value, name: str, vertical: Pair, horizontal: Pair) -> Value:
        """Zeros above and below, left and right."""
        module = nn.ZeroPad2d((*horizontal, *vertical))
        return self._add(name, module, Value(name, x.channels, x.height + sum(vertical), x.width + sum(horizontal)), x)

    def add(self, first: Value, second: Value, name: str | None = None) -> Value:
        """Element by element."""
        name = name or self._numbered("add")
        return self._add(name, Add(), Value(name, first.channels, first.height, first.width), first, second)

    def multiply(self, x: Value, factors: Value, name: str) -> Value:
        """Each channel times its factor ([N, C, 1, 1])."""
        return self._add(name, Multiply(), Value(name, x.channels, x.height, x.width), x, factors)

    def concatenate(self, *values: Value, name: str) -> Value:
        """Along the channels."""
        channels = sum(value.channels for value in values)
        return self._add(name, Concatenate(), Value(name, channels, values[0].height, values[0].width), *values)

    def second_half(self, x: Value, name: str) -> Value:
        """The second half of the channels."""
        return self._add(name, SecondHalf(), Value(name, x.channels - x.channels // 2, x.height, x.width), x)

    def dropout(self, x: Value, rate: float, name: str | None = None, *, whole_samples: bool = False) -> Value:
        """Dropout of single values, or of `whole_samples`."""
        name = name or self._numbered("dropout")
        module = SampleDropout(rate) if whole_samples else nn.Dropout(rate)
        return self._add(name, module, Value(name, x.channels, x.height, x.width), x)

    def flatten(self, x: Value, name: str = "flatten") -> Value:
        """Channel by channel, row by row; a flat value stays as it is."""
        return self._add(name, nn.Flatten(), Value(name, x.channels * x.height * x.width), x)

    def dense(self, x: Value, name: str, units: int) -> Value:
        """Fully connected layer, with bias."""
        units = self._widths.get(name, units)
        module = nn.Linear(x.channels, units)
        self._set_up(module, glorot_uniform)
        return self._add(name, module, Value(name, units), x)

    def classifier(self, x: Value, num_classes: int) -> Value:
        """TAO's own head: the mean over the map, then one dense layer."""
        return self.dense(self.global_average(x, "avg_pool"), "predictions", num_classes)

    def _set_up(self, module: nn.Conv2d | nn.Linear, initialise: Callable[[Tensor], None]) -> None:
        initialise(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        module.requires_grad_(not self._frozen)

    def _add(self, name: str, module: nn.Module, output: Value, *inputs: Value) -> Value:
        self._layers.append(Layer(name, module, tuple(value.layer for value in inputs)))
        return output

    def _numbered(self, kind: str) -> str:
        """Keras' name for a layer that was given none, as in add_1, add_2."""
        self._unnamed[kind] += 1
        return f"{kind}_{self._unnamed[kind]}"


def _swept(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """Height and width after a window has swept over a map."""
    height, width = (
        (side + 2 * pad - k) // step + 1 for side, k, step, pad in zip(size, kernel, stride, padding, strict=True)
    )
    return height, width
