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
    _spread_logits(module, head, images)


@torch.no_grad()
def teach(module: nn.Module, images: Tensor) -> nn.Module:
    """Gives each class the mean features of its images for weights, so that the answers stand out from INT8's noise.

    `images` are in the order of the classes, as many of each. The module is one that `calibrate` returned.
    """
    head = module.get_submodule(head_of(module))
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    module(images)
    hook.remove()
    means = torch.stack([each.mean(dim=0) for each in features[0].chunk(len(head.weight))])
    if isinstance(head, nn.Conv2d):
        means = means.mean(dim=(2, 3))
    head.weight.copy_((means - means.mean(dim=0)).reshape(head.weight.shape))
    _spread_logits(module, head, images)
    return module


def _spread_logits(module: nn.Module, head: nn.Module, images: Tensor) -> None:
    logits = module(images)
    spread = (logits - logits.mean(dim=0)).std()
    rounding = (deepcopy(module).double()(images.double()) - logits).abs().max()
    head.weight.mul_(torch.minimum(SPREAD / spread, ROUNDING / rounding))
    if isinstance(head, nn.Linear):
        head.bias.sub_(module(images).mean(dim=0))
