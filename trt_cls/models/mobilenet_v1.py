"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861) as TAO builds it: width 1, ReLU."""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value

BLOCKS = (
    (64, 1),
    (128, 2), (128, 1),
    (256, 2), (256, 1),
    (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip
"""Filters and stride of each depthwise separable block."""


def network(net: Builder, num_classes: int) -> Value:
    """conv1, thirteen blocks, head. Freeze ids: 0 conv1, 1 to 13 the blocks."""
    with net.block(0):
        x = net.conv_unit(net.input, "conv1", 32, 3, 2, bn="conv1_bn", activation="conv_block_relu")
    for number, (filters, stride) in enumerate(BLOCKS, 1):
        with net.block(number):
            name = f"conv_dw_{number}"
            x = net.batch_norm(net.depthwise_conv(x, name, 3, stride), f"{name}_bn")
            x = net.activation(x, f"{name}_relu")
            name = f"conv_pw_{number}"
            x = net.conv_unit(x, name, filters, 1, bn=f"{name}_bn", activation=f"conv_pw_relu_{number}")
    return paper_head(net, x, num_classes) if net.config.retain_head else net.classifier(x, num_classes)


def paper_head(net: Builder, x: Value, num_classes: int) -> Value:
    """7×7 average pooling, one dense layer; a smaller map is averaged whole."""
    kernel = min(7, x.height), min(7, x.width)
    return net.dense(net.flatten(net.average_pool(x, kernel, (7, 7))), "predictions", num_classes)
