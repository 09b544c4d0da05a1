"""One step of a learner against the same step written out with autograd."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from trt_cls.data.loader import TrainingBatch
from trt_cls.models import build
from trt_cls.spec.experiment import Experiment, Optimizer, RegConfig, Sgd
from trt_cls.training.compute import choose_compute, memory_kept
from trt_cls.training.learner import Learner


@pytest.mark.parametrize("type_", ["L1", "L2"])
def test_step_follows_the_gradient_of_the_loss_it_reports(type_: str, experiment: Callable[..., Experiment]) -> None:
    given: dict[str, Any] = {
        "optimizer": Optimizer(sgd=Sgd(momentum=0.0)),
        "reg_config": RegConfig(type=type_, weight_decay=0.01),
    }
    request = experiment(**given)
    assert request.train_config is not None
    torch.manual_seed(0)
    model, expected = build(request.model_config, 3), build(request.model_config, 3)
    expected.load_state_dict(model.state_dict())
    expected.double()
    images, targets = torch.randn(4, 3, 16, 16), torch.rand(4, 3).softmax(dim=1)

    learner = Learner(model, request.train_config, choose_compute("cpu", "fp32"))
    learner.step(TrainingBatch(images, targets, ()), number=0, rate=0.1)

    logits = expected(images.double())
    kernels = [parameter for parameter in expected.parameters() if parameter.dim() > 1]
    penalty = sum((w.abs() if type_ == "L1" else w * w).sum() for w in kernels) * 0.01
    loss = -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean() + penalty
    loss.backward()
    found = learner.metrics()
    assert found.loss == pytest.approx((loss - penalty).item(), rel=1e-5)
    assert found.penalty == pytest.approx(penalty.item(), rel=1e-5)
    assert learner.metrics().accuracy == (logits.argmax(1) == targets.argmax(1)).double().mean().item()
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert other.grad is not None
        # float32's own error in these gradients, of up to 8, is 1e-4 in either memory layout
        torch.testing.assert_close(parameter.double(), other - 0.1 * other.grad, rtol=1e-4, atol=3e-5, msg=name)


def batch_of(count: int, seed: int) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return TrainingBatch(images, functional.one_hot(torch.arange(count) % 3, 3).float(), ())


def test_an_image_left_alone_is_learned_from_with_the_next_batch_also_after_a_resumption(
    experiment: Callable[..., Experiment],
) -> None:
    request = experiment()
    assert request.train_config is not None

    def new() -> Learner:
        torch.manual_seed(0)
        return Learner(build(request.model_config, 3), request.train_config, choose_compute("cpu", "fp32"))

    alone, others = batch_of(1, 1), batch_of(2, 2)
    together = TrainingBatch(torch.cat([alone.images, others.images]), torch.cat([alone.targets, others.targets]), ())
    whole, resumed, expected = new(), new(), new()
    expected.step(together, 1, 0.1)
    whole.step(alone, 0, 0.1)
    assert (whole.steps_left_out, whole.metrics().images) == (1, 0)
    resumed.restore(whole.state())
    for learner in (whole, resumed):
        learner.step(batch_of(0, 3), 0, 0.1)
        learner.step(others, 1, 0.1)
        assert learner.metrics().images == 3
        for name, tensor in learner.model.state_dict().items():
            assert torch.equal(tensor, expected.model.state_dict()[name]), name


class Strides(TorchDispatchMode):
    """While entered, notes the strides of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "convolution":
            self.found.append(args[3])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("channels", "stride"), [(4, 2), (7, (1, 2)), (15, 3)])
def test_narrow_layers_of_a_pruned_network_train_without_the_kernel_that_writes_beyond_its_memory(
    channels: int, stride: Any
) -> None:
    layer = nn.Conv2d(channels, 6, 1, stride)
    expected, compute = deepcopy(layer).double(), choose_compute("cpu", "fp32")
    images = torch.randn(4, channels, 13, 13)
    with Strides() as strides:
        found = deepcopy(compute.place(layer))(compute.images(images))  # a copy, as the running mean has
    assert strides.found == [[1, 1]]  # with other strides oneDNN ends this process, or gives wrong gradients
    compute.place(layer)(compute.images(images)).square().sum().backward()
    reference = expected(images.double())
    reference.square().sum().backward()
    torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-5)
    for own, other in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-3)
    wide = compute.place(nn.Conv2d(16, 6, 1, 2))
    with Strides() as strides:
        wide(torch.randn(2, 16, 5, 5))
    assert strides.found == [[2, 2]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_of_a_step_is_kept_for_the_next() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(2 << 20) for _ in range(12)]  # 24,576 pages of 4 KiB
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with memory_kept(choose_compute("cpu", "fp32")):
        # the heap of a process that ran other tests has gaps, where the first rounds do not yet fit
        assert min(faults() for _ in range(8)) < 1000
