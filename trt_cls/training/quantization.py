"""Quantization-aware training: chooses the layers that compute in INT8 and measures the ranges of their inputs.

The ranges are measured once, before the training, on images as in inference; the weights adapt to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor, nn

from trt_cls.data.folder import evenly_spread
from trt_cls.data.stream import WORKERS, stream
from trt_cls.errors import DataError, RequestError
from trt_cls.models.int8_layers import measured_ranges, quantize_layers, restore_layers
from trt_cls.models.int8_ranges import CALIBRATION_BATCH, METHODS, Histogram, Method, best_of, decibels, threshold
from trt_cls.models.network import Add
from trt_cls.spec.experiment import Quantization
from trt_cls.training.setup import Setup
from trt_cls.training.validation import evaluating

COMPARED_ON = 64
"""Images on which "auto" compares the methods."""


def quantize_for_training(model: nn.Module, asked: Quantization, setup: Setup) -> str:
    """Makes the layers of `model`, which has its first weights, compute in INT8; returns a line for the console.

    Raises:
        DataError: no image can be decoded.
        ArtefactError: the network overflows on one.
        RequestError: no layer is left for INT8.
    """
    samples = evenly_spread(setup.train.samples, asked.calibration_batches * CALIBRATION_BATCH)
    used = 0

    def batches() -> Iterator[Tensor]:
        nonlocal used
        for batch in stream(samples, setup.contract.preprocessing, batch_size=CALIBRATION_BATCH, workers=WORKERS):
            if len(batch.images):
                used += len(batch.images)
                yield setup.compute.images(torch.from_numpy(batch.images))

    images = batches()
    first = list(islice(images, COMPARED_ON // CALIBRATION_BATCH))
    if not first:
        raise DataError(
            f"{setup.train.root}: none of {len(samples)} images to measure INT8's ranges on can be decoded; "
            "expected image files"
        )
    with evaluating(setup.compute.place(model)):
        found = measured_ranges(model, chain(first, images))
        layers = {name: inputs for name, inputs in found.items() if name not in _ends(model, found, asked.keep)}
        if not layers:
            raise RequestError(
                f"extensions.quantization: none of the {len(found)} layers that INT8 can compute is left; "
                "expected at least one; keep less, or leave the block out"
            )
        method = _quantize(model, layers, asked.calibration_method, torch.cat(first))
    measured_on = f"{used} of {len(setup.train.samples)} training images"
    return f"{len(layers)} layers compute in INT8, calibrated on {measured_on} ({method})"


@torch.no_grad()
def _quantize(model: nn.Module, layers: Mapping[str, Sequence[Histogram]], asked: str, images: Tensor) -> str:
    """Makes `layers` compute in INT8; returns the method, which "auto" chooses by comparing all on `images`."""
    exact = model(images)
    noise: dict[Method, float] = {}
    ranges = {}
    for method in METHODS if asked == "auto" else (cast(Method, asked),):
        ranges[method] = {name: [threshold(part, method) for part in inputs] for name, inputs in layers.items()}
        quantize_layers(model, ranges[method])
        noise[method] = decibels(exact.cpu().numpy(), (model(images) - exact).cpu().numpy())
        restore_layers(model)
    best, comparison = best_of(noise)
    quantize_layers(model, ranges[best])
    return comparison if asked == "auto" else asked


def _ends(model: nn.Module, found: Mapping[str, object], keep: Sequence[str]) -> set[str]:
    """The layers named by `keep`: the first and the last with weights."""
    with_weights = [name for name in found if not isinstance(model.get_submodule(name), Add)]
    return {with_weights[0 if end == "first" else -1] for end in keep if with_weights}
