"""Makes untrained networks fit to be compared: no activation explodes, and the answer depends on the image."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from trt_cls.models.network import head_of

SPREAD = 0.5
"""Of the logits between images."""
ROUNDING = 2e-5
"""Of float32 on the logits, at most: a fifth of what an export in FP32 may be off by."""


def calibrate(module: nn.Module, images: Tensor) -> nn.Module:
    """Sets the statistics of batch normalisation to those of `images`; the module is then in evaluation mode.

    The weights of the classes are drawn anew and scaled. Untrained and deep networks are chaotic: float32 and float64
    differ by up to 1 % of what tells two images apart, so that their logits must spread less.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(images)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        _scale_head(module.eval(), images)
    return module


def _scale_head(module: nn.Module, images: Tensor) -> None:
    head = module.get_submodule(head_of(module))
    nn.init.normal_(head.weight, std=head.weight[0].numel() ** -0.5)
    logits = module(images)
    spread = (logits - logits.mean(dim=0)).std()
    rounding = (deepcopy(module).double()(images.double()) - logits).abs().max()
    head.weight.mul_(torch.minimum(SPREAD / spread, ROUNDING / rounding))
    if isinstance(head, nn.Linear):
        head.bias.sub_(module(images).mean(dim=0))
