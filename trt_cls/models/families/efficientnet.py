"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv 1905.11946) as TAO builds them.

The only family that pads as TensorFlow does: a stride of 2 over an even side puts the odd zero below and to the right.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from trt_cls.models.builder import Builder, Pair, Value
from trt_cls.models.families.resnet import letters

SIZES = {
    "efficientnet_b0": (1.0, 1.0, 0.2),
    "efficientnet_b1": (1.0, 1.1, 0.2),
    "efficientnet_b2": (1.1, 1.2, 0.3),
    "efficientnet_b3": (1.2, 1.4, 0.3),
    "efficientnet_b4": (1.4, 1.8, 0.4),
    "efficientnet_b5": (1.6, 2.2, 0.4),
    "efficientnet_b6": (1.8, 2.6, 0.5),
    "efficientnet_b7": (2.0, 3.1, 0.5),
}
"""Factor of all filter counts, factor of all repeat counts, dropout rate of the paper's head."""


class Blocks(NamedTuple):
    """Blocks of one shape, before scaling."""

    kernel: int
    repeats: int
    filters: int
    expansion: int
    stride: int


STAGES = (
    Blocks(3, 1, 16, 1, 1),
    Blocks(3, 2, 24, 6, 2),
    Blocks(5, 2, 40, 6, 2),
    Blocks(3, 3, 80, 6, 2),
    Blocks(5, 3, 112, 6, 1),
    Blocks(5, 4, 192, 6, 2),
    Blocks(3, 1, 320, 6, 1),
)
SQUEEZE = 0.25
"""Filters of the squeeze as a share of the block's input."""
SAMPLE_DROPOUT = 0.2
"""Stochastic depth: the rate grows from 0 at the first block towards this."""


def network(net: Builder, num_classes: int) -> Value:
    """Stem, seven stages, top, head. Freeze ids: 0 the stem, 1 to 7 the stages, 8 the top."""
    width, depth, dropout = SIZES[net.config.arch]
    with net.block(0):
        x, padding = padded(net, net.input, "stem_conv_pad", 3)
        x = net.conv(x, "stem_conv", scaled(32, width), 3, 2, padding=padding)
        x = net.activation(net.batch_norm(x, "stem_bn"), "stem_activation")
    done = 0
    for number, stage in enumerate(STAGES, 1):
        with net.block(number):
            for repeat in range(math.ceil(stage.repeats * depth)):
                x = mobile_block(net, x, f"block{number}{letters(repeat)}_", stage, width, first=repeat == 0, done=done)
                done += 1
    with net.block(8):
        filters = scaled(1280, width)
        x = net.conv_unit(x, "top_conv", filters, 1, bn="top_bn", activation="top_activation")
    return paper_head(net, x, num_classes, dropout) if net.config.retain_head else net.classifier(x, num_classes)


def mobile_block(net: Builder, x: Value, name: str, stage: Blocks, width: float, *, first: bool, done: int) -> Value:
    """Expand, depthwise, squeeze and excite, project; the convolutions of the last two ignore use_bias."""
    source = x
    if stage.expansion > 1:
        x = net.conv(x, f"{name}expand_conv", x.channels * stage.expansion, 1)
        x = net.activation(net.batch_norm(x, f"{name}expand_bn"), f"{name}expand_activation")
    if first and stage.stride == 2:
        x, padding = padded(net, x, f"{name}dwconv_pad", stage.kernel)
        x = net.depthwise_conv(x, f"{name}dwconv", stage.kernel, 2, padding=padding)
    else:
        x = net.depthwise_conv(x, f"{name}dwconv", stage.kernel)
    x = net.activation(net.batch_norm(x, f"{name}bn"), f"{name}activation")
    x = squeeze_and_excite(net, x, name, max(1, int(source.channels * SQUEEZE)))
    x = net.conv(x, f"{name}project_conv", scaled(stage.filters, width), 1, bias=False)
    x = net.batch_norm(x, f"{name}project_bn")
    if first:
        return x
    # TAO divides by the repeats before scaling: from B1 on the last blocks drop more than SAMPLE_DROPOUT.
    rate = SAMPLE_DROPOUT * done / sum(stage.repeats for stage in STAGES)
    return net.add(net.dropout(x, rate, f"{name}drop", by_sample=True), source, f"{name}add")


def squeeze_and_excite(net: Builder, x: Value, name: str, squeezed: int) -> Value:
    """Each channel times a factor that depends on the means of all."""
    factors = net.global_average(x, f"{name}se_squeeze", keep_map=True)
    factors = net.activation(
        net.conv(factors, f"{name}se_reduce", squeezed, 1, bias=True), f"{name}se_reduce_activation"
    )
    factors = net.conv(factors, f"{name}se_expand", x.channels, 1, bias=True)
    factors = net.activation(factors, f"{name}se_expand_activation", "sigmoid")
    return net.multiply(x, factors, f"{name}se_excite")


def paper_head(net: Builder, x: Value, num_classes: int, dropout: float) -> Value:
    """TAO's default head, with dropout."""
    x = net.dropout(net.global_average(x, "avg_pool"), dropout, "top_dropout")
    return net.dense(x, "predictions", num_classes)


def padded(net: Builder, x: Value, name: str, kernel: int) -> tuple[Value, Pair]:
    """The input, zero-padded if needed, of a convolution with a stride of 2, and that convolution's own padding."""
    half = kernel // 2
    if x.height % 2 and x.width % 2:
        return x, (half, half)
    vertical, horizontal = ((half - 1 + side % 2, half) for side in (x.height, x.width))
    return net.zero_pad(x, name, vertical, horizontal), (0, 0)


def scaled(filters: int, width: float) -> int:
    """Filters at another width: a multiple of 8, at least 90 % of the exact number."""
    exact = filters * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8
