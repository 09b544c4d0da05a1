"""One network with its optimizer: the training step, the running sums of an epoch, and all state as plain tensors.

Where several processes train, each has a learner with the same weights. Does not know: epochs, files, folders.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_cls.contract import Contract
from trt_cls.data.loader import TrainingBatch
from trt_cls.distributed.processes import ALONE, Processes
from trt_cls.engines import open_engine
from trt_cls.engines.torch import TorchEngine
from trt_cls.errors import ArtefactError, RequestError
from trt_cls.models.network import Network
from trt_cls.spec.experiment import NO_EXTENSIONS, Distillation, Extensions, TrainConfig
from trt_cls.training.averaging import RunningMean
from trt_cls.training.compute import Compute, compiled
from trt_cls.training.graphs import Graphed
from trt_cls.training.loss import training_loss
from trt_cls.training.optimization import optimizer, parameter_groups, penalty, set_rate
from trt_cls.training.parallel import Pipelined, replicated, spread
from trt_cls.training.resizing import Size, resized
from trt_cls.training.scaling import count_steps
from trt_cls.training.validation import evaluating


class EpochMeans(NamedTuple):
    """Means over the images of an epoch so far; NaN before the first."""

    loss: float
    """Cross-entropy with the smoothed and mixed targets, as weights of classes and focal loss change it, or binary
    cross-entropy with extensions.bce_loss or labels, and the teacher's part if there is one."""
    accuracy: float
    """With extensions.labels the share of images with all labels right, at a threshold of 0.5."""
    images: int
    penalty: float = 0.0
    """On weights."""


class Learner:
    """Trains `model`, which it moves to the device of `compute`; a step uses the batches of all `processes`.

    `weights` are those of the classes in the loss; None: all 1. `cuda_graphs`: where `require_recordable` allows them.

    Raises:
        RequestError: batches of one image, on which batch normalization can't train.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        compute: Compute,
        processes: Processes = ALONE,
        extensions: Extensions = NO_EXTENSIONS,
        teacher: Teacher | None = None,
        weights: Tensor | None = None,
        *,
        compile_network: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.model = compute.place(model).train()
        if isinstance(model, Network):
            model.reuse_memory()
        if len(compute.devices) > 1 and isinstance(model, Network):
            spread(model, config.model_parallelism, compute.devices, config.batch_size_per_gpu)
        self._mean = RunningMean(self.model, extensions.ema_decay) if extensions.ema_decay else None
        self.penalty = penalty(config.reg_config, model)
        self._compute, self._processes, self._extensions, self._teacher = compute, processes, extensions, teacher
        self._weights = None if weights is None else weights.to(compute.last)
        parts, group = extensions.microbatches, extensions.accumulate_steps
        network: Any = replicated(Pipelined(self.model, parts) if parts > 1 else self.model, processes)
        if cuda_graphs:
            network = Graphed(network, compute, config.batch_size_per_gpu)
        self._network = compiled(network) if compile_network else network
        groups = parameter_groups(model, self.penalty, extensions)
        self._optimizer = optimizer(extensions.optimizer or config.optimizer, groups)
        self._scaler = compute.scaler()
        count_steps(self._optimizer, on_device=self._scaler.is_enabled())
        self._seed = config.random_seed
        self._sums = torch.zeros(4, dtype=torch.float64, device=compute.last)
        self._full_group = group * config.batch_size_per_gpu * processes.size if group > 1 else 0
        """Images of several batches for one step of the optimizer; 0: a step for each batch."""
        self._images_of_group = 0
        self._lone: TrainingBatch | None = None
        """A batch of a single image, which waits for the next batch."""
        self._images_needed = _images_needed(model, config.batch_size_per_gpu)
        self.steps_left_out = 0
        """Steps of this run for which at most one image was readable."""

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: `model`, or its running mean with extensions.ema_decay."""
        return self._mean.model if self._mean else self.model

    def step(
        self, batch: TrainingBatch, number: int, rate: float, *, size: Size | None = None, ends_group: bool = True
    ) -> None:
        """Trains on `batch`, resized to `size`, at learning rate `rate`; `number` counts the training's batches from 0.

        The optimizer's step follows the last batch of a group, with the mean gradient over the images of the group and
        of all processes, however they are distributed. A single image, where batch normalization needs two, waits for
        the next batch.
        """
        batch = self._with_lone(batch)
        images = len(batch.images)
        (images_of_all,) = self._processes.totals(images)
        if images_of_all:
            torch.manual_seed(dropout_seed(self._seed, number, self._processes.rank))
            if not self._images_of_group:
                self._optimizer.zero_grad()
            loss = self._loss(batch, size) if images else self._no_loss(batch)
            # gradients are averaged over the processes, whose shares of the images may differ
            share = images * self._processes.size / (self._full_group or images_of_all)
            torch.autograd.backward(self._scaler.scale(loss * share))
            self._images_of_group += images_of_all
        else:
            self.steps_left_out += 1
        if ends_group and self._images_of_group:
            self._update(rate)

    def start_epoch(self) -> None:
        """Sets the running sums to zero."""
        self._sums.zero_()

    def metrics(self) -> EpochMeans:
        """Means of the epoch so far over this process's images; waits for the device."""
        return _means(self._sums.tolist())

    def metrics_of_all(self) -> EpochMeans:
        """As `metrics`, from the images of all processes, which must all call it."""
        return _means([sum(column) for column in zip(*self._processes.gather(self._sums.tolist()), strict=True)])

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, except its batch and number; all processes must call it."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "sums": self._processes.gather(self._sums.tolist()),
            "group": {"images": self._images_of_group, "gradients": gradients if self._images_of_group else {}},
            "mean": self._mean.state() if self._mean else {},
            "lone": self._processes.gather(self._lone and (self._lone.images.cpu(), self._lone.targets.cpu())),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        count_steps(self._optimizer, on_device=self._scaler.is_enabled())
        for parameter, kept in self._optimizer.state.items():  # torch does not check
            if any(value.dim() and value.shape != parameter.shape for value in kept.values() if torch.is_tensor(value)):
                raise ValueError("the optimizer's state is that of other weights")
        self._scaler.load_state_dict(state["scaler"])
        self._sums.copy_(torch.tensor(state["sums"][self._processes.rank], dtype=torch.float64))
        self._images_of_group = state["group"]["images"]
        for name, gradient in state["group"]["gradients"].items():
            parameter = self.model.get_parameter(name)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        if self._mean:
            self._mean.restore(state["mean"])
        lone = state["lone"][self._processes.rank]
        self._lone = TrainingBatch(lone[0], lone[1], ()) if lone else None

    def _with_lone(self, batch: TrainingBatch) -> TrainingBatch:
        """`batch` with the image that waited; an empty batch, whose image waits, if that is a single one."""
        if self._lone is not None and len(batch.images):
            parts = zip((self._lone.images, self._lone.targets), (batch.images, batch.targets), strict=True)
            images, targets = (torch.cat([lone.to(others.device), others]) for lone, others in parts)
            self._lone, batch = None, TrainingBatch(images, targets, batch.skipped)
        if 0 < len(batch.images) < self._images_needed:
            self._lone, batch = batch, TrainingBatch(batch.images[:0], batch.targets[:0], batch.skipped)
        return batch

    def _loss(self, batch: TrainingBatch, size: Size | None) -> Tensor:
        """The mean over the batch, without the penalty."""
        images, targets = self._compute.images(batch.images), self._compute.targets(batch.targets)
        if size and size != images.shape[2:]:
            images = resized(images, size)
        with self._compute.autocast():
            logits = self._network(images)
        if self._extensions.bce_loss or self._extensions.labels:
            loss = functional.binary_cross_entropy_with_logits(logits.float(), targets)
        else:
            loss = training_loss(logits.float(), targets, self._weights, self._extensions.focal_gamma)
        if self._teacher:
            loss = self._teacher.blended(loss, logits.float(), batch.images)
        if self._extensions.labels:
            correct = ((logits >= 0) == (targets >= 0.5)).all(dim=1).sum()
        else:
            correct = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
        count = torch.full_like(loss, len(targets))
        penalty = self.penalty.value(loss.device)  # copied from the CPU, it would wait for the GPU
        self._sums += torch.stack([loss.detach() * count, correct.to(loss.dtype), count, penalty * count]).double()
        return loss

    def _no_loss(self, batch: TrainingBatch) -> Tensor:
        """Zero, computed by the network: a process without images joins the others' exchange of gradients."""
        nothing = torch.zeros(1, *batch.images.shape[1:])
        with evaluating(self.model), self._compute.autocast():
            logits: Tensor = self._network(self._compute.images(nothing))
        return logits.float().sum()

    def _update(self, rate: float) -> None:
        """The optimizer's step."""
        set_rate(self._optimizer, rate)
        self._scaler.unscale_(self._optimizer)
        if self._full_group not in (0, self._images_of_group):
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, self._full_group / self._images_of_group)
        if self._extensions.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._extensions.clip_grad_norm)
        self.penalty.add_l1_gradient()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._images_of_group = 0
        if self._mean:
            self._mean.update()


def dropout_seed(seed: int, step: int, process: int = 0) -> int:
    """A seed for the dropout of one step, from the training's seed and the numbers of the step and the process.

    So neither other draws (a loader makes some when it starts) nor an interruption change the masks of later steps.
    """
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


class Teacher:
    """The model that `config` names, opened for batches that `contract` describes.

    Raises:
        ArtefactError: it is no model file, or its classes or preprocessing differ.
    """

    def __init__(self, config: Distillation, contract: Contract, compute: Compute) -> None:
        self._engine = open_engine(Path(config.teacher), "cpu" if compute.device.type == "cpu" else "auto")
        self._temperature, self._weight = config.temperature, config.weight
        different = contract.differences(self._engine.contract)
        if self._engine.contract.preprocessing.embedded:
            different.append("preprocessing: before the network ≠ inside the file")
        if different:
            raise ArtefactError(
                f"extensions.distillation.teacher: {config.teacher}: {'; '.join(different)}; expected the classes and "
                "the preprocessing of the trained network (before the ≠); name another teacher, or train with its"
            )

    def blended(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 - weight) · `loss` + weight · temperature² · KL divergence of the softened probabilities.

        Engines give probabilities, whose logarithms are the teacher's logits but for a constant that has no effect in a
        softmax: softening them is exact.
        """
        # a probability that is rounded to zero counts as the smallest of float32
        known = self._probabilities(images).to(logits.device).clamp_min(torch.finfo(torch.float32).tiny).log()
        softened = functional.softmax(known / self._temperature, dim=1)
        own = functional.log_softmax(logits / self._temperature, dim=1)
        divergence = functional.kl_div(own, softened, reduction="batchmean")
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * divergence

    def _probabilities(self, images: Tensor) -> Tensor:
        """The teacher's answers; those of a checkpoint stay on the GPU, others wait for it in each step."""
        if isinstance(self._engine, TorchEngine):
            return self._engine.probabilities(images.contiguous())
        return torch.from_numpy(self._engine.infer(np.ascontiguousarray(images.cpu().numpy())))


def _images_needed(model: nn.Module, batch_size: int) -> int:
    """How many images a batch must have: batch normalization can't train on one."""
    if not any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules()):
        return 1
    if batch_size == 1:
        raise RequestError(
            "train_config.batch_size_per_gpu: 1, but batch normalization needs at least two images; expected ≥ 2; "
            "or set model_config.use_batch_norm to False or model_config.freeze_bn to True"
        )
    return 2


def _means(sums: list[float]) -> EpochMeans:
    loss, correct, images, penalty = sums
    if not images:
        return EpochMeans(math.nan, math.nan, 0)
    return EpochMeans(loss / images, correct / images, int(images), penalty / images)
