"""Scaled losses for fp16: a step whose gradients overflowed changes nothing, which the GPU decides without the host.

torch's GradScaler does so for fused optimizers, and waits for the GPU in each step of the others. Does not know: how a
step is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Scaler(torch.amp.GradScaler):
    """torch's, which takes the steps of all optimizers without waiting; `count_steps` comes first."""

    def step(self, optimizer: torch.optim.Optimizer, *given: Any, **options: Any) -> float | None:
        """torch's; where the first step overflows, its fused SGD would go on with a momentum that nobody wrote."""
        if self.is_enabled() and isinstance(optimizer, torch.optim.SGD):
            for group in optimizer.param_groups:
                for weight in group["params"] if group["momentum"] else ():
                    if weight.grad is not None and "momentum_buffer" not in (state := optimizer.state[weight]):
                        state["momentum_buffer"] = torch.zeros_like(weight)
        return super().step(optimizer, *given, **options)

    @torch.no_grad()
    def _maybe_opt_step(
        self, optimizer: torch.optim.Optimizer, optimizer_state: Any, *given: Any, **options: Any
    ) -> None:
        """The step, after which weights and state go back to what they were where a gradient is not finite.

        torch calls it for optimizers that are not fused. A state that the step made goes back to zeros, with which
        those of RMSprop, LAMB, Lion and Muon begin.
        """
        found = optimizer_state["found_inf_per_device"].values()
        before = _changed(optimizer)
        kept = {key: torch.empty_like(tensor) for key, tensor in before.items()}
        torch._foreach_copy_(list(kept.values()), list(before.values()))
        optimizer.step(*given, **options)
        after = _changed(optimizer)
        overflowed = {
            device: torch.stack([each.to(device, non_blocking=True) for each in found]).sum() > 0
            for device in {tensor.device for tensor in after.values()}
        }
        chosen = [torch.where(overflowed[now.device], kept.get(key, 0.0), now) for key, now in after.items()]
        torch._foreach_copy_(list(after.values()), chosen)


def _changed(optimizer: torch.optim.Optimizer) -> dict[tuple[Tensor, str], Tensor]:
    """The weights that a step changes, and their state, by weight and name."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    return {(w, name): t for w in weights for name, t in ({"": w} | optimizer.state.get(w, {})).items()}


def count_steps(optimizer: torch.optim.Optimizer, *, on_device: bool) -> None:
    """Keeps the numbers of steps that an optimizer computes with on the GPU, where a step may turn out to be none.

    To be called again after load_state_dict.
    """
    if "capturable" not in optimizer.defaults or optimizer.defaults.get("fused"):
        return
    for group in optimizer.param_groups:
        group["capturable"] = on_device
        for weight in group["params"]:
            if "step" in (state := optimizer.state.get(weight, {})):
                state["step"] = state["step"].to(weight.device if on_device else "cpu")
