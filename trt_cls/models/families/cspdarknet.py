"""CSPDarkNet-19 and -53 (Bochkovskiy et al. 2020, arXiv 2004.10934), and -tiny, as TAO builds them.

Each stage processes one part of its channels and concatenates the other part, unchanged, at the end. CSPDarkNet-tiny is
the backbone of YOLOv4-tiny (Wang et al. 2020, arXiv 2011.08036).
"""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value
from trt_cls.models.families.darknet import STAGES_19, STAGES_53, assembled, residual_unit, unit


def network(net: Builder, num_classes: int) -> Value:
    """DarkNet with other stages; the same freeze ids."""
    return assembled(net, num_classes, stages_19 if net.config.n_layers == 19 else stages_53)


def stages_19(net: Builder, x: Value) -> Value:
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


def stages_53(net: Builder, x: Value) -> Value:
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


FILTERS = (64, 128, 256)


def tiny_network(net: Builder, num_classes: int) -> Value:
    """Two convolutions, three blocks, one convolution, head. Freeze ids: 0 to 5, in this order."""
    x = net.input
    for number, filters in enumerate((32, 64)):
        with net.block(number):
            x = unit(net, x, f"conv_{number}", filters, 3, 2)
    for number, filters in enumerate(FILTERS, 2):
        with net.block(number):
            x = csp_block(net, x, f"conv_{number}", filters)
    with net.block(5):
        x = unit(net, x, "conv_5", 512, 3)
    if net.config.retain_head:
        return net.dense(net.global_average(x, "avgpool"), "predictions", num_classes)
    return net.classifier(x, num_classes)


def csp_block(net: Builder, x: Value, name: str, filters: int) -> Value:
    """Processes the second half of the channels, concatenates all of them, halves the map."""
    route = unit(net, x, f"{name}_conv_0", filters, 3)
    first = unit(net, net.second_half(route, f"{name}_split_0"), f"{name}_conv_1", filters // 2, 3)
    second = unit(net, first, f"{name}_conv_2", filters // 2, 3)
    joined = net.concatenate(second, first, name=f"{name}_concat_0")
    joined = unit(net, joined, f"{name}_conv_3", filters, 1)
    return net.max_pool(net.concatenate(route, joined, name=f"{name}_concat_1"), 2, 2, f"{name}_pool_0")
