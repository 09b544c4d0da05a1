"""DarkNet-19 (Redmon and Farhadi 2016, arXiv 1612.08242) and DarkNet-53 (2018, arXiv 1804.02767) as TAO builds them."""

from __future__ import annotations

from collections.abc import Callable

from trt_cls.models.builder import Builder, Value

STAGES_19 = ((64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
"""Filters and convolutions, alternately 3×3 at full and 1×1 at half width."""
STAGES_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""Filters and residual units."""


Stages = Callable[[Builder, Value], Value]


def network(net: Builder, num_classes: int) -> Value:
    """See `assembled`."""
    return assembled(net, num_classes, stages_19 if net.config.n_layers == 19 else stages_53)


def assembled(net: Builder, num_classes: int, stages: Stages) -> Value:
    """conv1, five stages, head. Freeze ids: 0 conv1, 1 to 5 the stages."""
    with net.block(0):
        x = unit(net, net.input, "conv1", 32, 3)
    x = stages(net, x)
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
