"""Optimizers that torch does not have, or not for every weight: LAMB, Lion and Muon.

LAMB and Lion are timm's, and Muon is torch's with kernels of convolutions as matrices [out, in·h·w], as in timm; they
are computed alike, so that steps are equal to theirs. Does not know: specs, networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from https://kellerjordan.github.io/posts/muon."""
NEWTON_SCHULZ_STEPS = 5
LONGEST_GRADIENT = 1.0
"""LAMB divides gradients whose norm over all weights is larger by that norm."""


class Lamb(torch.optim.Optimizer):
    """LAMB: Adam's step plus weight_decay · w, scaled to the norm of the weights, for the groups that decay."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "capturable": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all weights with a gradient."""
        gradients = [weight.grad for group in self.param_groups for weight in _trained(group)]
        if not gradients:
            return
        norms = torch._foreach_norm(gradients)
        device = norms[0].device
        clip = torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms])).div(LONGEST_GRADIENT)
        clip.clamp_(min=1.0)
        for group in self.param_groups:
            for weight in _trained(group):
                self._update(weight, weight.grad / clip.to(weight.device), group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = _no_steps(weight, group)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step, (beta_1, beta_2) = state["step"].double(), group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta_1)
        square.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        denominator = (square.sqrt() / (1 - beta_2**step) ** 0.5).add_(group["eps"])
        update = (mean / (1 - beta_1**step)).div_(denominator)
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
            own, length = weight.norm(2.0), update.norm(2.0)
            update.mul_(torch.where((own > 0) & (length > 0), own / length, 1.0))
        weight.add_(update, alpha=-group["lr"])


class Lion(torch.optim.Optimizer):
    """Lion: each weight moves by the learning rate, in the direction of a mean of gradients."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all weights with a gradient."""
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for weight in _trained(group):
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(state["exp_avg"].lerp(weight.grad, 1 - beta_1).sign_(), alpha=-group["lr"])
                state["exp_avg"].lerp_(weight.grad, 1 - beta_2)


class Muon(torch.optim.AdamW):
    """Muon in groups with `orthogonal`, whose weights have two dimensions or more; AdamW in the others.

    A step of Muon has the size of AdamW's, 0.2 · √max(rows, columns) times an orthogonal matrix, so both share the
    learning rate and the weight decay.
    """

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float, momentum: float) -> None:
        # not fused: GradScaler leaves it to fused optimizers to look for gradients that are not finite
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all weights with a gradient."""
        groups = self.param_groups
        for group in groups:
            for weight in _trained(group) if group["orthogonal"] else ():
                self._update(weight, group)
        try:
            self.param_groups = [group for group in groups if not group["orthogonal"]]
            super().step()
        finally:
            self.param_groups = groups

    def _update(self, weight: Any, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = _no_steps(weight, group)
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["step"] += 1
        state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
        step = orthogonalized(weight.grad.lerp(state["momentum_buffer"], group["momentum"]).flatten(1))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(step.reshape(weight.shape), alpha=-group["lr"] * 0.2 * max(step.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix in bfloat16 with the singular vectors of `matrix`, and singular values near 1.

    For a zero matrix it is zero.
    """
    a, b, c = NEWTON_SCHULZ
    found = matrix.bfloat16()
    tall = found.size(0) > found.size(1)
    found = found.T if tall else found
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


def _trained(group: dict[str, Any]) -> Iterator[Any]:
    """The weights of a group that have a gradient."""
    return (weight for weight in group["params"] if weight.grad is not None)


def _no_steps(weight: Tensor, group: dict[str, Any]) -> Tensor:
    """A count of steps as torch's own optimizers keep it: on the CPU, where reading it does not wait for a GPU."""
    return torch.zeros((), dtype=torch.float32, device=weight.device if group.get("capturable") else "cpu")
