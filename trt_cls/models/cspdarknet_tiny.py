"""The backbone of YOLOv4-tiny (Wang et al. 2020, arXiv 2011.08036) as TAO builds it."""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value
from trt_cls.models.darknet import unit

FILTERS = (64, 128, 256)


def network(net: Builder, num_classes: int) -> Value:
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
    """Works on the second half of its channels, joins all of them, halves the map."""
    route = unit(net, x, f"{name}_conv_0", filters, 3)
    first = unit(net, net.second_half(route, f"{name}_split_0"), f"{name}_conv_1", filters // 2, 3)
    second = unit(net, first, f"{name}_conv_2", filters // 2, 3)
    joined = net.concatenate(second, first, name=f"{name}_concat_0")
    joined = unit(net, joined, f"{name}_conv_3", filters, 1)
    return net.max_pool(net.concatenate(route, joined, name=f"{name}_concat_1"), 2, 2, f"{name}_pool_0")
