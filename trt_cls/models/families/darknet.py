"""DarkNet-19 and -53, and CSPDarkNet-19, -53 and -tiny, as TAO builds them.

DarkNet-19: Redmon and Farhadi 2016, arXiv 1612.08242. DarkNet-53: the same 2018, arXiv 1804.02767. CSPDarkNet:
Bochkovskiy et al. 2020, arXiv 2004.10934; each stage processes part of its channels and concatenates the other part,
unchanged, at the end. CSPDarkNet-tiny: the backbone of YOLOv4-tiny, Wang et al. 2020, arXiv 2011.08036.
"""

from __future__ import annotations

from collections.abc import Callable

from trt_cls.models.builder import Builder, Value

STAGES_19 = ((64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
"""Filters and convolutions, alternately 3×3 at full and 1×1 at half width."""
STAGES_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""Filters and residual units."""
TINY_FILTERS = (64, 128, 256)
"""Of CSPDarkNet-tiny's blocks."""

Stages = Callable[[Builder, Value], Value]


def network(net: Builder, num_classes: int) -> Value:
    """See `assembled`."""
    return assembled(net, num_classes, stages_19 if net.config.n_layers == 19 else stages_53)


def csp_network(net: Builder, num_classes: int) -> Value:
    """DarkNet with other stages; the same freeze ids."""
    return assembled(net, num_classes, csp_stages_19 if net.config.n_layers == 19 else csp_stages_53)


def csp_tiny_network(net: Builder, num_classes: int) -> Value:
    """Two convolutions, three blocks, one convolution, head. Freeze ids: 0 to 5, in this order."""
    x = net.input
    for number, filters in enumerate((32, 64)):
        with net.block(number):
            x = unit(net, x, f"conv_{number}", filters, 3, 2)
    for number, filters in enumerate(TINY_FILTERS, 2):
        with net.block(number):
            x = csp_block(net, x, f"conv_{number}", filters)
    with net.block(5):
        x = unit(net, x, "conv_5", 512, 3)
    return head(net, x, num_classes)


def assembled(net: Builder, num_classes: int, stages: Stages) -> Value:
    """conv1, five stages, head. Freeze ids: 0 conv1, 1 to 5 the stages."""
    with net.block(0):
        x = unit(net, net.input, "conv1", 32, 3)
    x = stages(net, x)
    return head(net, x, num_classes)


def head(net: Builder, x: Value, num_classes: int) -> Value:
    """Both of TAO's heads have the same layers here, under other names."""
    if net.config.retain_head:
        return net.dense(net.global_average(x, "avgpool"), "predictions", num_classes)
    return net.classifier(x, num_classes)


def stages_19(net: Builder, x: Value) -> Value:
    """Plain convolutions, halved by pooling."""
    for stage, (filters, convolutions) in enumerate(STAGES_19, 1):
        x = net.max_pool(x, 2, 2, f"maxpool_{stage}")
        with net.block(stage):
            for number in range(1, convolutions + 1):
                full = number % 2 == 1
                x = unit(net, x, f"b{stage}_conv{number}", filters if full else filters // 2, 3 if full else 1)
    return x


def stages_53(net: Builder, x: Value) -> Value:
    """Residual units, halved by a stride of 2."""
    for stage, (filters, units) in enumerate(STAGES_53, 1):
        with net.block(stage):
            x = unit(net, x, f"conv{stage + 1}", filters, 3, 2)
            for number in range(1, units + 1):
                x = residual_unit(net, x, stage, number, filters // 2, filters)
    return x


def residual_unit(net: Builder, x: Value, stage: int, number: int, narrow: int, filters: int) -> Value:
    """1×1, 3×3, plus the shortcut; no activation after the sum."""
    y = unit(net, x, f"b{stage}_conv{number}_1", narrow, 1)
    y = unit(net, y, f"b{stage}_conv{number}_2", filters, 3)
    return net.add(x, y, f"b{stage}_add{number}")


def unit(net: Builder, x: Value, name: str, filters: int, kernel: int, stride: int = 1) -> Value:
    """Convolution, normalization, activation.

    TAO names the last `_lrelu` here and `_mish` in the CSP families, whichever function it is.
    """
    suffix = "lrelu" if net.config.arch == "darknet" else "mish"
    return net.conv_unit(x, name, filters, kernel, stride, bn=f"{name}_bn", activation=f"{name}_{suffix}")


def csp_stages_19(net: Builder, x: Value) -> Value:
    """DarkNet-19's stages, all convolutions but the first at half width; halved by pooling."""
    for stage, (filters, convolutions) in enumerate(STAGES_19, 1):
        x = net.max_pool(x, 2, 2, f"maxpool_{stage}")
        with net.block(stage):
            x = unit(net, x, f"b{stage}_conv1", filters, 3)
            if convolutions == 1:
                continue
            half = filters // 2
            y = unit(net, x, f"b{stage}_part2", half, 1)
            for number in range(2, convolutions + 1):
                y = unit(net, y, f"b{stage}_conv{number}", half, 1 if number % 2 == 0 else 3)
            x = join(net, x, y, f"b{stage}", f"b{stage}_part1", half, filters)
    return x


def csp_stages_53(net: Builder, x: Value) -> Value:
    """DarkNet-53's stages at half width, the first at full width; halved by a stride of 2."""
    for stage, (filters, units) in enumerate(STAGES_53, 1):
        part = filters if stage == 1 else filters // 2
        with net.block(stage):
            x = unit(net, x, f"conv{stage + 1}", filters, 3, 2)
            y = unit(net, x, f"conv{stage + 1}_2", part, 1)
            for number in range(1, units + 1):
                y = residual_unit(net, y, stage, number, filters // 2, part)
            x = join(net, x, y, f"b{stage}", f"conv{stage + 1}_1", part, filters)
    return x


def join(net: Builder, x: Value, y: Value, name: str, other_part: str, part: int, filters: int) -> Value:
    """Concatenates the processed part with the other part of `x`, and mixes them by a 1×1 convolution."""
    y = unit(net, y, f"{name}_partial_trans", part, 1)
    z = unit(net, x, other_part, part, 1)
    return unit(net, net.concatenate(y, z, name=f"{name}_concat"), f"{name}_final_trans", filters, 1)


def csp_block(net: Builder, x: Value, name: str, filters: int) -> Value:
    """Processes the second half of the channels, concatenates all of them, halves the map."""
    route = unit(net, x, f"{name}_conv_0", filters, 3)
    first = unit(net, net.second_half(route, f"{name}_split_0"), f"{name}_conv_1", filters // 2, 3)
    second = unit(net, first, f"{name}_conv_2", filters // 2, 3)
    joined = net.concatenate(second, first, name=f"{name}_concat_0")
    joined = unit(net, joined, f"{name}_conv_3", filters, 1)
    return net.max_pool(net.concatenate(route, joined, name=f"{name}_concat_1"), 2, 2, f"{name}_pool_0")
