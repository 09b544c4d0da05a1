"""VGG (Simonyan and Zisserman 2014, arXiv 1409.1556) as TAO builds it: 3×3 convolutions in five stages.

The map is halved after each stage but the last by pooling, or else by a stride of 2 where the next stage begins.
"""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value
from trt_cls.models.families.resnet import letters

CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each stage, by depth."""
FILTERS = (64, 128, 256, 512, 512)
HIDDEN = 4096


def network(net: Builder, num_classes: int) -> Value:
    """Five stages, head. Freeze ids: 1 to 5 the stages."""
    config = net.config
    x = net.input
    for stage, (convolutions, filters) in enumerate(zip(CONVOLUTIONS[config.n_layers], FILTERS, strict=True), 1):
        with net.block(stage):
            for unit in range(convolutions):
                name = f"block_{stage}{letters(unit)}_"
                stride = 2 if unit == 0 and stage > 1 and not config.use_pooling else 1
                x = net.conv_unit(x, f"{name}conv_1", filters, 3, stride, bn=f"{name}bn_1", activation=f"{name}relu")
        if config.use_pooling and (stage < len(FILTERS) or config.retain_head):
            x = net.max_pool(x, 2, 2, f"block{stage}_pool")
    return paper_head(net, x, num_classes) if config.retain_head else net.classifier(x, num_classes)


def paper_head(net: Builder, x: Value, num_classes: int) -> Value:
    """Two hidden layers with dropout."""
    x = net.flatten(x)
    for name in ("fc1", "fc2"):
        x = net.activation(net.dense(x, name, HIDDEN), f"{name}_relu")
        if net.config.dropout:
            x = net.dropout(x, net.config.dropout)
    return net.dense(x, "output_fc", num_classes)
