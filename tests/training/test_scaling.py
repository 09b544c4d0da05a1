"""Steps in fp16 whose gradients overflow, against torch's GradScaler, for which the host decides."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from support.host_syncs import counted_on
from trt_cls.spec.experiment import Optimizer, Rmsprop, Sgd
from trt_cls.spec.extensions import Lamb, Lion, ModernOptimizer, Muon
from trt_cls.training.optimization import optimizer, set_rate
from trt_cls.training.scaling import Scaler, count_steps

OVERFLOWS = (0, 2, 3)
"""Steps of the test; in the first, an optimizer has no state yet, and in fp16 it often overflows."""


def network() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4))


def made(config: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
    kernel, *rest = model.parameters()
    groups = [{"params": [kernel], "orthogonal": True}, {"params": rest, "orthogonal": False}]
    found = optimizer(config, [group | {"weight_decay": 0.1} for group in groups])
    set_rate(found, 0.01)
    return found


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 3, 3)).square().mean() * (torch.inf if step in OVERFLOWS else 1)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(
    "config",
    [
        Optimizer(rmsprop=Rmsprop()),
        ModernOptimizer(lamb=Lamb()),
        ModernOptimizer(lion=Lion()),
        ModernOptimizer(muon=Muon()),
    ],
    ids=["rmsprop", "lamb", "lion", "muon"],
)
def test_a_step_that_overflows_changes_nothing_and_is_not_counted(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted_on(monkeypatch, "cpu")
    ours, theirs = network(), network()
    plain = made(config, theirs)
    train(theirs, plain, torch.amp.GradScaler("cpu"), range(7))
    scaler, before = Scaler("cpu"), made(config, ours)
    count_steps(before, on_device=True)
    train(ours, before, scaler, range(4))
    file = io.BytesIO()
    torch.save((before.state_dict(), scaler.state_dict()), file)
    file.seek(0)
    states, resumed, scaler = torch.load(file, weights_only=True), made(config, ours), Scaler("cpu")
    resumed.load_state_dict(states[0])
    count_steps(resumed, on_device=True)
    scaler.load_state_dict(states[1])
    train(ours, resumed, scaler, range(4, 7))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert resumed.state[one].keys() == plain.state[other].keys()
        assert resumed.state[one].get("step", 4) == plain.state[other].get("step", 4) == 4
        # AdamW, to which Muon leaves what is no matrix, rounds otherwise where it counts on the device
        exact = not isinstance(resumed, torch.optim.AdamW) or "momentum_buffer" in resumed.state[one]
        torch.testing.assert_close(one, other, rtol=0, atol=0 if exact else 1e-7)


def test_the_momentum_of_sgd_is_zero_after_a_first_step_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = network(), network()
    before = made(Optimizer(sgd=Sgd(momentum=0.9)), ours)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # with NaN
    torch.use_deterministic_algorithms(True)
    try:
        train(ours, before, Scaler("cpu"), range(5))
        train(theirs, plain, torch.amp.GradScaler("cpu"), range(5))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
