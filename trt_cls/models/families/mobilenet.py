"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861) and v2 (Sandler et al. 2018, arXiv 1801.04381) as in TAO.

Both have width 1; v2 has ReLU instead of ReLU6.
"""

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


def network_v1(net: Builder, num_classes: int) -> Value:
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
    """7×7 average pooling, or over the entire map if it is smaller, and one dense layer."""
    kernel = min(7, x.height), min(7, x.width)
    return net.dense(net.flatten(net.average_pool(x, kernel, (7, 7))), "predictions", num_classes)


STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, filters, blocks, stride of the first block."""


def network_v2(net: Builder, num_classes: int) -> Value:
    """conv1, seventeen blocks, conv_1, head. Freeze ids: 0 conv1, 1 to 17 the blocks, 18 conv_1."""
    with net.block(0):
        x = net.conv_unit(net.input, "conv1", 32, 3, 2, bn="bn_conv1", activation="re_lu_0")
    number = 0
    for expansion, filters, blocks, first_stride in STAGES:
        for block in range(blocks):
            with net.block(number + 1):
                x = inverted_residual(
                    net, x, number, expansion, filters, 1 if block else first_stride, shortcut=block > 0
                )
            number += 1
    with net.block(number + 1):
        x = net.conv_unit(x, "conv_1", 1280, 1, bn="conv_1_bn", activation="re_lu_head")
    return paper_head(net, x, num_classes) if net.config.retain_head else net.classifier(x, num_classes)


def inverted_residual(
    net: Builder, x: Value, number: int, expansion: int, filters: int, stride: int, *, shortcut: bool
) -> Value:
    """Wide in the middle, linear at the end.

    With all_projections in the spec, the shortcut is a 1×1 convolution with neither bias nor normalization.
    """
    source, name = x, f"block_{number}_" if number else "expanded_conv_"
    if expansion > 1:
        width = expansion * x.channels
        x = net.conv_unit(x, f"{name}expand", width, 1, bn=f"{name}expand_bn", activation=f"re_lu_{number + 1}")
    x = net.batch_norm(net.depthwise_conv(x, f"{name}depthwise", 3, stride), f"{name}depthwise_bn")
    x = net.activation(x, f"{name}relu")
    x = net.batch_norm(net.conv(x, f"{name}project", filters, 1), f"{name}project_bn")
    if not shortcut:
        return x
    if net.config.all_projections:
        source = net.conv(source, f"{name}projected_inputs", filters, 1, bias=False)
    return net.add(source, x, f"{name}add")
