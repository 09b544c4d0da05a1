"""A network's layers take the sizes of other tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trt_cls.models.network import resize_layers


@pytest.mark.parametrize(
    ("layer", "weight", "image"),
    [
        (nn.Conv2d(1, 16, 3), (8, 1, 3, 3), (2, 1, 5, 5)),
        (nn.Conv2d(3, 16, 3), (8, 3, 3, 3), (2, 3, 5, 5)),
        (nn.Conv2d(16, 16, 3, groups=16), (8, 1, 3, 3), (2, 8, 5, 5)),
        (nn.Conv2d(16, 32, 3), (8, 4, 3, 3), (2, 4, 5, 5)),
    ],
    ids=["gray input", "color input", "depthwise", "both sides"],
)
def test_a_resized_convolution_takes_and_gives_the_channels_of_its_weight(
    layer: nn.Conv2d, weight: tuple[int, ...], image: tuple[int, ...]
) -> None:
    network = nn.Sequential(layer)
    assert resize_layers(network, {"0.weight": weight, "0.bias": weight[:1]}) == ("0",)
    assert network(torch.zeros(image)).shape == (2, weight[0], 3, 3)
