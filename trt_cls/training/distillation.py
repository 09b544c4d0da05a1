"""Knowledge distillation: another model's probabilities as a part of the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_cls.contract import Contract
from trt_cls.engines import open_engine
from trt_cls.errors import ArtefactError
from trt_cls.spec.experiment import Distillation
from trt_cls.training.compute import Compute


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
        probabilities = torch.from_numpy(self._engine.infer(np.ascontiguousarray(images.cpu().numpy()))).to(
            logits.device
        )
        # a probability that is rounded to zero counts as the smallest of float32
        known = torch.from_numpy(probabilities).to(logits.device).clamp_min(torch.finfo(torch.float32).tiny).log()
        softened = functional.softmax(known / self._temperature, dim=1)
        own = functional.log_softmax(logits / self._temperature, dim=1)
        divergence = functional.kl_div(own, softened, reduction="batchmean")
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * divergence
