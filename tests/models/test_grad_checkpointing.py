"""Values that the backward pass computes again: less is kept, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trt_cls.models import build
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import ModelConfig

LIKE_B0 = [f"efficientnet_b{size}" for size in range(1, 8)]


def network(arch: str) -> nn.Module:
    known = ARCHITECTURES[arch]
    options: dict[str, Any] = {"n_layers": known.depths[0]} if known.depths else {}
    options |= {"dropout": 0.5} if known.has_dropout else {}
    options |= {"use_batch_norm": True} if "use_batch_norm" in known.switches else {}
    torch.manual_seed(0)
    return build(ModelConfig(arch=arch, input_image_size="3,32,32", **options), 3).train()


def step(network: nn.Module, images: Tensor) -> tuple[list[Tensor], int]:
    """All that a step of training computes, and the bytes kept for the backward pass, each memory once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    torch.manual_seed(1)  # of dropout and dropped branches
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
    size = sum(value for place, value in kept.items() if place not in weights)
    logits.square().sum().backward()
    return [logits, *(weight.grad for weight in network.parameters()), *network.buffers()], size


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in LIKE_B0])
def test_less_is_kept_and_every_result_stays(arch: str) -> None:
    plain, recomputed = network(arch), network(arch)
    recomputed.set_grad_checkpointing()
    for each in (plain, recomputed):
        each.reuse_memory()
    images = torch.randn(2, 3, 32, 32)
    (expected, plain_size), (found, size) = step(plain, images), step(recomputed, images)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert size < 0.7 * plain_size


def test_what_is_computed_again_is_not_written_over() -> None:
    plain, recomputed = network("darknet"), network("darknet")  # a ReLU of what it wrote would be the same
    for each in (plain, recomputed):
        each.reuse_memory()
    recomputed.set_grad_checkpointing()  # last
    images = torch.randn(2, 3, 32, 32)
    assert all(
        torch.equal(one, other) for one, other in zip(step(plain, images)[0], step(recomputed, images)[0], strict=True)
    )
