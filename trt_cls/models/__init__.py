"""Networks: one file per family, checkpoints and pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trt_cls.spec.architectures import is_external
from trt_cls.spec.experiment import ModelConfig

if TYPE_CHECKING:
    from torch import nn

NO_WIDTHS: Mapping[str, int] = {}


def build(
    model_config: ModelConfig, num_classes: int, widths: Mapping[str, int] = NO_WIDTHS, *, tao_pooling: bool = False
) -> nn.Module:
    """The network that the spec describes, freshly initialised, softmax not included.

    `widths` gives layers (by name) other numbers of channels than their family has, as pruning does. `tao_pooling`
    keeps the zero-padded final pooling of an imported TAO ResNet with use_pooling. Both concern the families here
    alone; an `arch` like "torchvision/resnet18" gives that library's own module.

    Raises:
        RequestError: the family, its depth or its activation is not known, or the input image is too small for it.
        MissingDependency: the library of `arch` is not installed.
    """
    if is_external(model_config.arch):
        from trt_cls.models.external import build as build_external

        return build_external(model_config, num_classes)
    from trt_cls.models.families import build as build_family

    return build_family(model_config, num_classes, widths, tao_pooling=tao_pooling)
