"""Makes untrained networks behave as trained ones do: no activation explodes, and the answer depends on the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trt_cls.models.network import head_of


def calibrate(module: nn.Module, images: Tensor, head_gain: float = 0.5) -> nn.Module:
    """Sets the statistics of batch normalisation to those of `images`; the module is then in evaluation mode.

    The weights of the classes are drawn anew, so that logits differ by about `head_gain` between images, or by less
    where that would take logits beyond 25 times `head_gain`: an untrained network of 800 layers hardly tells images
    apart, and what is left of them is rounding.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(images)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        _spread(module.eval(), images, head_gain)
    return module


def _spread(module: nn.Module, images: Tensor, gain: float) -> None:
    head = module.get_submodule(head_of(module))
    nn.init.normal_(head.weight, std=head.weight[0].numel() ** -0.5)
    logits = module(images)
    spread = (logits - logits.mean(dim=0)).std()
    head.weight.mul_(gain / torch.maximum(spread, logits.abs().mean() / 25))
    if isinstance(head, nn.Linear):
        head.bias.sub_(module(images).mean(dim=0))
