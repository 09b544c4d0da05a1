"""Networks: TAO's families and those of torchvision and timm, checkpoints, pretrained weights, INT8 layers.

Does not know: data, training, ONNX. Begin with `build`; `families/` has one module per family, `tao/` reads TAO's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trt_cls.spec.architectures import is_external
from trt_cls.spec.experiment import ModelConfig

if TYPE_CHECKING:
    from torch import nn


def build(
    model_config: ModelConfig,
    num_classes: int,
    widths: Mapping[str, int] | None = None,
    *,
    tao_pooling: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """The network that the spec describes, newly initialized, without softmax.

    `widths` sets the number of filters of layers by name, for pruned networks. `tao_pooling` keeps the zero-padded
    final pooling of an imported TAO ResNet with use_pooling. Both apply to TAO's families only; an `arch` like
    "torchvision/resnet18" gives that library's own module. `drop_path` is the probability of stochastic depth in the
    last block of a network that has it; 0: its default.

    Raises:
        RequestError: the family, its depth or its activation is unknown, or the input image is too small for it.
        MissingDependency: the library of `arch` is not installed.
    """
    if is_external(model_config.arch):
        from trt_cls.models.external import build as build_external

        return build_external(model_config, num_classes, drop_path)
    from trt_cls.models.families import build as build_family

    network = build_family(model_config, num_classes, widths, tao_pooling=tao_pooling)
    if drop_path:
        network.set_drop_path(drop_path)
    return network
