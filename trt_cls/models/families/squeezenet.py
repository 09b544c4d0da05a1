"""SqueezeNet (Iandola et al. 2016, arXiv 1602.07360) as TAO builds it: version 1.0 with pooling padded by one."""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value

FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
"""Filters of the squeeze, and of each of the two expanding convolutions."""
POOLED = (4, 8)
"""Fires followed by 3×3 max pooling with stride 2."""
LEAST_DROPOUT = 1e-3
"""TAO's rate, if the spec sets no dropout."""


def network(net: Builder, num_classes: int) -> Value:
    """conv1, eight fires, head. Freeze ids: 0 conv1, 1 to 8 the fires."""
    with net.block(0):
        x = net.activation(net.conv(net.input, "conv1", 96, 7, 2), "conv1_relu")
    x = net.max_pool(x, 3, 2, "pool1")
    for number, (squeezed, expanded) in FIRES.items():
        with net.block(number - 1):
            x = fire(net, x, f"fire{number}", squeezed, expanded)
        if number in POOLED:
            x = net.max_pool(x, 3, 2, f"pool{number}")
    return paper_head(net, x, num_classes) if net.config.retain_head else net.classifier(x, num_classes)


def fire(net: Builder, x: Value, name: str, squeezed: int, expanded: int) -> Value:
    """Squeeze, then parallel 1×1 and 3×3 convolutions."""
    x = net.activation(net.conv(x, f"{name}_squeeze_conv", squeezed, 1), f"{name}_squeeze")
    pixels = net.activation(net.conv(x, f"{name}_expand_conv1x1", expanded, 1), f"{name}_expand_1x1")
    small = net.activation(net.conv(x, f"{name}_expand_conv3x3", expanded, 3), f"{name}_expand_3x3")
    return net.concatenate(pixels, small, name=name)


def paper_head(net: Builder, x: Value, num_classes: int) -> Value:
    """A convolution with one map per class; the mean of a map after ReLU is the logit."""
    x = net.dropout(x, net.config.dropout or LEAST_DROPOUT, "fire9_dropout")
    x = net.activation(net.conv(x, "conv10", num_classes, 1), "conv10_relu")
    return net.global_average(x, "pool10")
