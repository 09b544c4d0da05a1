"""Before a training as INT8 computes: which layers do, and the range of what each of them reads.

The ranges stay as they are measured here, on the pixels of inference; the weights learn to live with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from trt_cls.data.folder import evenly_spread
from trt_cls.data.stream import stream
from trt_cls.errors import DataError, RequestError
from trt_cls.models.fake_quantization import measured, quantize_layers
from trt_cls.models.layers import Add
from trt_cls.models.ranges import CALIBRATION_BATCH, Method, threshold
from trt_cls.spec.experiment import Quantization
from trt_cls.training.compute import Compute
from trt_cls.training.request import TrainingData
from trt_cls.training.validation import evaluating

WORKERS = 4


def quantize(model: nn.Module, asked: Quantization, data: TrainingData, compute: Compute) -> str:
    """Makes the layers of `model`, which has its first weights, compute in INT8; returns a line for people.

    Raises:
        DataError: no image can be decoded.
        ArtefactError: the network overflows on one.
        RequestError: no layer is left for INT8.
    """
    samples = evenly_spread(data.train.samples, asked.calibration_batches * CALIBRATION_BATCH)
    used = 0

    def batches() -> Iterator[Tensor]:
        nonlocal used
        for batch in stream(samples, data.contract.preprocessing, batch_size=CALIBRATION_BATCH, workers=WORKERS):
            used += len(batch.images)
            if len(batch.images):
                yield compute.images(torch.from_numpy(batch.images))

    with evaluating(compute.place(model)):
        found = measured(model, batches())
    if not used:
        raise DataError(
            f"{data.train.root}: none of {len(samples)} images to measure INT8's ranges on can be decoded; "
            "expected image files"
        )
    layers = {name: inputs for name, inputs in found.items() if name not in _ends(model, found, asked.keep)}
    if not layers:
        raise RequestError(
            f"extensions.quantization: none of the {len(found)} layers that INT8 can compute is left for it; expected "
            "one at least; keep less, or leave the block out"
        )
    method = cast(Method, asked.calibration_method)
    quantize_layers(model, {name: [threshold(part, method) for part in inputs] for name, inputs in layers.items()})
    measured_on = f"{used} of {len(data.train.samples)} training images"
    return f"{len(layers)} layers compute in INT8, calibrated on {measured_on} ({method})"


def _ends(model: nn.Module, found: Mapping[str, object], keep: Sequence[str]) -> set[str]:
    """The layers named by `keep`: the first and the last with weights."""
    with_weights = [name for name in found if not isinstance(model.get_submodule(name), Add)]
    return {with_weights[0 if end == "first" else -1] for end in keep if with_weights}
