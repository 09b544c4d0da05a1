"""AlexNet (Krizhevsky et al. 2012) as TAO builds it.

In one tower, without local response normalization and without pooling after conv5.
"""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value

CONVOLUTIONS = ((96, 11, 4), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1))
"""Filters, kernel, stride of conv1 to conv5."""
POOLED = (1, 2)
"""Convolutions followed by 3×3 max pooling with stride 2."""
HIDDEN = 4096


def network(net: Builder, num_classes: int) -> Value:
    """Five convolutions, head. Freeze ids: 1 to 5 the convolutions, 6 to 8 the dense layers of the paper's head."""
    x = net.input
    for number, (filters, kernel, stride) in enumerate(CONVOLUTIONS, 1):
        with net.block(number):
            x = net.activation(net.conv(x, f"conv{number}", filters, kernel, stride), f"conv{number}_relu")
        if number in POOLED:
            x = net.max_pool(x, 3, 2, f"pool{number}")
    return paper_head(net, x, num_classes) if net.config.retain_head else net.classifier(x, num_classes)


def paper_head(net: Builder, x: Value, num_classes: int) -> Value:
    """Two hidden layers, without dropout."""
    x = net.flatten(x)
    for number in (6, 7):
        with net.block(number):
            x = net.activation(net.dense(x, f"fc{number}", HIDDEN), f"fc{number}_relu")
    with net.block(8):
        return net.dense(x, "head_fc8", num_classes)
