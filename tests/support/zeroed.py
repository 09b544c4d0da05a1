"""What a network answers when removed channels are zeros wherever a layer reads them, one layer after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from trt_cls.models.network import INPUT, Add, Concatenate, Multiply, Network, SecondHalf


def answer_with_zeroed(network: Network, kept: Mapping[str, np.ndarray], images: Tensor) -> Tensor:
    """The logits; fails where values meet whose removed channels are not the same."""
    values, gone = {INPUT: images}, {INPUT: torch.zeros(images.shape[1], dtype=torch.bool)}
    for step in network.steps:
        module = getattr(network, step.name)
        inputs, masks = [values[name] for name in step.inputs], [gone[name] for name in step.inputs]
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs[0] = inputs[0].clone()
            inputs[0][:, masks[0]] = 0
            mask = torch.ones(len(module.weight), dtype=torch.bool)
            mask[torch.from_numpy(kept[step.name])] = False
        else:
            mask = _passed_on(module, inputs[0], masks)
        values[step.name], gone[step.name] = module(*inputs), mask
    assert not mask.any()
    return values[step.name]


def _passed_on(module: nn.Module, value: Tensor, masks: list[Tensor]) -> Tensor:
    if isinstance(module, Concatenate):
        return torch.cat(masks)
    if isinstance(module, (Add, Multiply)):
        assert torch.equal(*masks)
    if isinstance(module, SecondHalf):
        return masks[0][len(masks[0]) // 2 :]
    if isinstance(module, nn.Flatten):
        return masks[0].repeat_interleave(value[0, 0].numel())
    return masks[0]
