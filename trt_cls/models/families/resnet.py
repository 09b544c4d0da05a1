"""ResNet (He et al. 2015, arXiv 1512.03385) as TAO builds it.

The stride is on the first convolution of a unit (in bottlenecks the 1×1 one), every stage begins with a projection, and
without pooling four of the five halvings are strides of 2, the fifth is left out: the map is 1/16 of the image.
"""

from __future__ import annotations

from trt_cls.models.builder import Builder, Value

UNITS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Units in each of the four stages, by depth."""
FILTERS = (64, 128, 256, 512)
BASIC = ((3, 1), (3, 1))
BOTTLENECK = ((1, 1), (3, 1), (1, 4))
"""Kernel, and width as a multiple of the stage's filters, of each convolution in a unit."""


def network(net: Builder, num_classes: int) -> Value:
    """conv1, four stages, head. Freeze ids: 0 conv1, 1 to 4 the stages."""
    config = net.config
    with net.block(0):
        x = net.conv_unit(net.input, "conv1", 64, 7, 2, bn="bn_conv1")
    if config.use_pooling:
        x = net.max_pool(x, 3, 2)
    strides = (1, 2, 2, 2) if config.use_pooling else (2, 2, 2, 1)
    convs = BOTTLENECK if config.n_layers >= 50 else BASIC
    for stage, (units, filters, stride) in enumerate(zip(UNITS[config.n_layers], FILTERS, strides, strict=True), 1):
        with net.block(stage):
            for unit in range(units):
                name = f"block_{stage}{letters(unit)}_"
                x = residual_unit(net, x, name, convs, filters, stride if unit == 0 else 1, first=unit == 0)
    if config.use_pooling and (config.retain_head or net.tao_pooling):
        x = pool_final_map(net, x)
    if config.retain_head:
        return net.dense(net.flatten(x, "flatten_1"), f"head_fc{num_classes}", num_classes)
    return net.classifier(x, num_classes)


def residual_unit(
    net: Builder, x: Value, name: str, convs: tuple[tuple[int, int], ...], filters: int, stride: int, *, first: bool
) -> Value:
    """Convolutions and a shortcut, which is projected if the shape changes or the spec has all_projections."""
    shortcut, widest = x, filters * convs[-1][1]
    for number, (kernel, multiple) in enumerate(convs, 1):
        x = net.conv(x, f"{name}conv_{number}", filters * multiple, kernel, stride if number == 1 else 1)
        x = net.batch_norm(x, f"{name}bn_{number}")
        if number < len(convs):
            x = net.activation(x, f"{name}relu_{number}")
    if first or net.config.all_projections:
        shortcut = net.conv(shortcut, f"{name}conv_shortcut", widest, 1, stride)
        shortcut = net.batch_norm(shortcut, f"{name}bn_shortcut")
    return net.activation(net.add(x, shortcut), f"{name}relu")


def pool_final_map(net: Builder, x: Value) -> Value:
    """Average pooling to a seventh of the map, rounded up; TAO's pads 3 zeros on every side and counts them.

    So TAO's 7×7 window sees only the corner of a 7×7 map (16 of its 49 pixels); here the windows cover the map. The
    shapes of the following weights are the same.
    """
    if net.tao_pooling:
        return net.average_pool(x, (7, 7), (7, 7), (3, 3))
    (kernel_h, stride_h), (kernel_w, stride_w) = _covering(x.height), _covering(x.width)
    return net.average_pool(x, (kernel_h, kernel_w), (stride_h, stride_w))


def _covering(side: int) -> tuple[int, int]:
    """Kernel and stride of ceil(side / 7) windows that cover `side` pixels without padding."""
    windows = -(-side // 7)
    stride = side // windows
    return side - (windows - 1) * stride, stride


def letters(index: int) -> str:
    """The letters that number units: a to z, then aa, ab and so on, as in spreadsheets."""
    return letters(index // 26 - 1) + letters(index % 26) if index >= 26 else chr(ord("a") + index)
