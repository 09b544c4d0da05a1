"""What a training step can be asked for: every optimizer, and each option of losses, penalties and networks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from support.spec_texts import each_of
from trt_cls.data.loader import TrainingBatch
from trt_cls.models import build
from trt_cls.spec.experiment import CosineLr, LrConfig, ModelConfig, Optimizer, RegConfig, Sgd, TrainConfig
from trt_cls.spec.extensions import ClassWeights, Extensions, ModernOptimizer
from trt_cls.training.compute import Compute
from trt_cls.training.learner import Learner, Teacher

MODEL = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
CONFIG = TrainConfig(
    train_dataset_path="",
    val_dataset_path="",
    batch_size_per_gpu=4,
    optimizer=Optimizer(sgd=Sgd(momentum=0.9)),
    reg_config=RegConfig(type="None"),
    lr_config=LrConfig(cosine=CosineLr(learning_rate=0.1)),
)


@dataclass(frozen=True)
class StepOptions:
    """What a step is asked for."""

    extensions: Extensions = field(default_factory=Extensions)
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of train_config."""
    model: ModelConfig = MODEL

    def learner(self, compute: Compute, teacher: Teacher | None = None, **options: Any) -> Learner:
        """For three classes; `options` are Learner's."""
        network = build(self.model, 3, drop_path=self.extensions.drop_path)
        if self.extensions.gradient_checkpointing:
            network.set_grad_checkpointing()
        weights = torch.tensor([0.5, 1.0, 1.5]) if self.extensions.class_weights else None
        config = replace(CONFIG, **self.config)
        options |= {"extensions": self.extensions, "teacher": teacher, "weights": weights}
        return Learner(network, config, compute, **options)

    def batch(self, device: torch.device) -> TrainingBatch:
        """Four images."""
        targets = torch.eye(3, device=device).repeat(2, 1)[:4]
        return TrainingBatch(torch.rand(4, *self.model.input_shape, device=device), targets, ())

    def step(self, learner: Learner, batch: TrainingBatch, number: int) -> None:
        """Step `number`, counted from 0; where there are groups, the odd ones end one."""
        ends_group = number % 2 == 1 or self.extensions.accumulate_steps == 1
        learner.step(batch, number, 0.01, ends_group=ends_group)


OPTIMIZERS = {name: StepOptions(config={"optimizer": chosen}) for name, chosen in each_of(Optimizer).items()} | {
    name: StepOptions(Extensions(optimizer=chosen, layer_decay=0.9))
    for name, chosen in each_of(ModernOptimizer).items()
}
"""By the optimizer's name in the spec."""

OTHERS = {
    "bce_loss": StepOptions(Extensions(bce_loss=True)),
    "labels": StepOptions(Extensions(labels="labels.csv")),
    "focal_gamma and class_weights": StepOptions(Extensions(focal_gamma=2.0, class_weights=ClassWeights())),
    "ema_decay, clip_grad_norm and accumulate_steps": StepOptions(
        Extensions(ema_decay=0.9, clip_grad_norm=1.0, accumulate_steps=2)
    ),
    "gradient_checkpointing": StepOptions(Extensions(gradient_checkpointing=True)),
    "microbatches": StepOptions(Extensions(microbatches=2)),
    "L1": StepOptions(config={"reg_config": RegConfig(type="L1")}),
    "L2": StepOptions(config={"reg_config": RegConfig(type="L2")}),
}
"""Losses, penalties, and what is done with gradients and weights."""

TRANSFORMER = StepOptions(
    replace(OPTIMIZERS["adamw"].extensions, drop_path=0.1, gradient_checkpointing=True),
    model=replace(MODEL, arch="timm/test_vit"),
)
"""With all options of its own; needs timm."""
