"""One network with its optimizer: a step, the running sums of an epoch, and all of its state as plain tensors.

It knows nothing of epochs, files or folders.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_cls.data.loader import TrainingBatch
from trt_cls.errors import RequestError
from trt_cls.spec.experiment import TrainConfig
from trt_cls.training.compute import Compute
from trt_cls.training.optimizers import optimizer
from trt_cls.training.regularizers import penalty


class Metrics(NamedTuple):
    """Means over the images of an epoch so far; not a number before the first."""

    loss: float
    """Cross-entropy against the smoothed and mixed targets, and the penalty."""
    accuracy: float
    images: int


class Learner:
    """Trains `model`, which it moves to the device of `compute`.

    Raises:
        RequestError: batches of one image, which batch normalisation can't learn from.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, compute: Compute) -> None:
        self.model = model.to(compute.device).train()
        self.compute = compute
        self.penalty = penalty(config.reg_config, model)
        self._optimizer = optimizer(config.optimizer, self.penalty.parameter_groups(model))
        self._scaler = compute.scaler()
        self._seed = config.random_seed
        self._normalises_batches = any(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules())
        self._sums = torch.zeros(3, dtype=torch.float64, device=compute.device)
        self.steps_left_out = 0
        """Steps of this run whose images were broken but for one at most."""
        if self._normalises_batches and config.batch_size_per_gpu == 1:
            raise RequestError(
                "train_config.batch_size_per_gpu: 1, but batch normalisation learns from two images on; expected ≥ 2; "
                "or set model_config.use_batch_norm to False or model_config.freeze_bn to True"
            )

    def step(self, batch: TrainingBatch, number: int, rate: float) -> None:
        """One step of the optimizer at learning rate `rate`; `number` counts the steps of the whole training from 0."""
        if len(batch.images) < (2 if self._normalises_batches else 1):
            self.steps_left_out += 1
            return
        images, targets = self._on_device(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(dropout_seed(self._seed, number))
        self._optimizer.zero_grad()
        with self.compute.autocast():
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), targets)
        torch.autograd.backward(self._scaler.scale(loss))
        self._note(loss.detach() + self.penalty.value(), logits, targets)
        self._scaler.unscale_(self._optimizer)
        self.penalty.add_l1_gradient()
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def start_epoch(self) -> None:
        """Sets the running sums to zero."""
        self._sums.zero_()

    def metrics(self) -> Metrics:
        """Of the epoch so far; waits for the device."""
        loss, correct, images = self._sums.tolist()
        if not images:
            return Metrics(math.nan, math.nan, 0)
        return Metrics(loss / images, correct / images, int(images))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside its batch and number."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "sums": self._sums.cpu(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._sums.copy_(state["sums"])

    def _on_device(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        device = self.compute.device
        # tensor cores work on NHWC; cuDNN follows the layout of the images
        layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
        return (
            batch.images.to(device, non_blocking=True, memory_format=layout),
            batch.targets.to(device, non_blocking=True),
        )

    def _note(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        correct = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
        images = torch.full_like(loss, len(targets))
        self._sums += torch.stack([loss * images, correct.to(loss.dtype), images]).double()


def dropout_seed(seed: int, step: int) -> int:
    """A seed for the dropout of one step: from the training's seed and the step's number alone.

    So no draw elsewhere (a loader makes some when it starts) and no interruption changes the masks of later steps.
    """
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
