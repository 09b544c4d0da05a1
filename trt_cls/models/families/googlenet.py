"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842) as TAO builds it.

Without auxiliary heads and local response normalization; with 2×2 pooling, real 5×5 convolutions, and batch
normalization if the spec has use_batch_norm.
"""

from __future__ import annotations

from typing import NamedTuple

from trt_cls.models.builder import Builder, Value


class Inception(NamedTuple):
    """Filters of each convolution of one inception module."""

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_proj: int


MODULES = {
    "3a": Inception(64, 96, 128, 16, 32, 32),
    "3b": Inception(128, 128, 192, 32, 96, 64),
    "4a": Inception(192, 96, 208, 16, 48, 64),
    "4b": Inception(160, 112, 224, 24, 64, 64),
    "4c": Inception(128, 128, 256, 24, 64, 64),
    "4d": Inception(112, 144, 288, 32, 64, 64),
    "4e": Inception(256, 160, 320, 32, 128, 128),
    "5a": Inception(256, 160, 320, 32, 128, 128),
    "5b": Inception(384, 192, 384, 48, 128, 128),
}


def network(net: Builder, num_classes: int) -> Value:
    """Stem, nine modules, head. Freeze ids: 0 the stem, 1 to 9 the modules."""
    with net.block(0):
        x = net.conv_unit(net.input, "conv1", 64, 7, 2, bn="bn_conv1")
        x = net.max_pool(x, 2, 2, "pool1")
        x = net.conv_unit(x, "conv2_reduce", 64, 1, bn="bn_conv2_reduce")
        x = net.conv_unit(x, "conv2", 192, 3, bn="bn_conv2")
        x = net.max_pool(x, 2, 2, "pool2")
    for number, (module, filters) in enumerate(MODULES.items(), 1):
        with net.block(number):
            x = inception(net, x, f"inception_{module}_", filters)
        if module == "3b":
            x = net.max_pool(x, 2, 2, "pool3")
        if module == "4e" and net.config.retain_head:
            x = net.max_pool(x, 2, 2, "pool4")
    return paper_head(net, x, num_classes) if net.config.retain_head else net.classifier(x, num_classes)


def inception(net: Builder, x: Value, name: str, filters: Inception) -> Value:
    """Four parallel branches."""

    def unit(source: Value, branch: str, width: int, kernel: int) -> Value:
        return net.conv_unit(source, f"{name}{branch}", width, kernel, bn=f"{name}{branch}_bn")

    pixels = unit(x, "1x1", filters.conv1x1, 1)
    small = unit(unit(x, "3x3_reduce", filters.reduce3x3, 1), "3x3", filters.conv3x3, 3)
    large = unit(unit(x, "5x5_reduce", filters.reduce5x5, 1), "5x5", filters.conv5x5, 5)
    pooled = unit(net.max_pool(x, 3, 1, f"{name}pool"), "pool_proj", filters.pool_proj, 1)
    return net.concatenate(pixels, small, large, pooled, name=f"{name}output")


def paper_head(net: Builder, x: Value, num_classes: int) -> Value:
    """7×7 average pooling with stride 1, then one dense layer over the entire map."""
    x = net.average_pool(x, (7, 7), (1, 1), (3, 3), "avg_pool")
    return net.dense(net.dropout(net.flatten(x), 0.4), "output_fc", num_classes)
