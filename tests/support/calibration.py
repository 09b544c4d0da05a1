"""Makes untrained networks fit to be compared: no activation explodes, and the answer depends on the image."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_cls.export.parity import BOUNDS
from trt_cls.models.network import head_of
from trt_cls.spec.architectures import is_external
from trt_cls.spec.experiment import ModelConfig

SPREAD = 0.5
"""Of the logits between images."""
STEPS = 10
"""After which INT8 agrees on 29 or 30 of 30 images; without them, a pruned mobilenet_v1 did on 15."""
TOO_DEEP = {("resnet", 101), ("resnet", 152), *((f"efficientnet_b{size}", 18) for size in range(1, 8))}
"""Arch and n_layers of those that so few steps teach next to nothing: 80 to 100 % of the images kept their class.

What `BOUNDS` asks of INT8 is for networks that have learnt something.
"""
RIDGE = 0.3
"""Of the median square of an image's features."""
ROUNDING = 2e-5
"""Of float32 on the logits, at most: a fifth of what an export in FP32 may be off by."""


def judge_int8(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets any answers pass where `train_on` teaches too little: the graph and the engine are what is tested then.

    That is where a network is TOO_DEEP, and without batch normalization.
    """
    if (model.arch, model.n_layers) in TOO_DEEP or not (model.use_batch_norm or is_external(model.arch)):
        lifted = replace(BOUNDS["int8"], top1_agreement=0.0, max_abs_difference=1.0)
        monkeypatch.setitem(BOUNDS, "int8", lifted)


def calibrate(module: nn.Module, images: Tensor) -> nn.Module:
    """Sets the statistics of batch normalization to those of `images`; the module is then in evaluation mode.

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


def train_on(module: nn.Module, images: Tensor, classes: Tensor, steps: int = STEPS) -> nn.Module:
    """A few steps on `images`, and weights of the classes that fit them: answers that stand out from INT8's noise."""
    optimizer = torch.optim.Adam(module.train().parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(module(images), classes).backward()
        optimizer.step()
    return _fit_head(calibrate(module, images), images, classes)


@torch.no_grad()
def _fit_head(module: nn.Module, images: Tensor, classes: Tensor) -> nn.Module:
    """Ridge regression of the classes on the features: their means would be those of the loudest image.

    EfficientNet-B3 has one, beside which it answers the same for 28 of 30.
    """
    head, features = module.get_submodule(head_of(module)), features_of(module, images).double()
    if features.dim() == 4:
        features = features.mean(dim=(2, 3))
    features -= features.mean(dim=0)
    wanted = functional.one_hot(classes, len(head.weight)).double() - 1 / len(head.weight)
    products = features @ features.T
    ridge = RIDGE * products.diagonal().median() * torch.eye(len(features))
    weights = torch.linalg.solve(products + ridge, wanted).T @ features
    head.weight.copy_(weights.float().reshape(head.weight.shape))
    _spread_logits(module, head, images)
    return module


def features_of(module: nn.Module, images: Tensor) -> Tensor:
    """What the layer of the classes reads."""
    seen: list[Tensor] = []
    hook = module.get_submodule(head_of(module)).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(images)
    hook.remove()
    return seen[0]


def _spread_logits(module: nn.Module, head: nn.Module, images: Tensor) -> None:
    """Scales the weights of the classes, so that logits spread by `SPREAD` and float32 rounds them little."""
    logits = module(images)
    spread = (logits - logits.mean(dim=0)).std()
    rounding = (deepcopy(module).double()(images.double()) - logits).abs().max()
    head.weight.mul_(torch.minimum(SPREAD / spread, ROUNDING / rounding))
    if isinstance(head, nn.Linear):
        head.bias.sub_(module(images).mean(dim=0))
