"""TensorBoard: the curves of each epoch and, where the spec's visualizer asks for them, images and histograms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_cls.contract import Preprocessing
from trt_cls.errors import MissingDependency
from trt_cls.spec.experiment import Visualizer
from trt_cls.training.records import EpochRow


class Events:
    """The event files of one training; `first_epoch` and later ones of an earlier run are superseded."""

    def __init__(self, folder: Path, visualizer: Visualizer, preprocessing: Preprocessing, first_epoch: int) -> None:
        self._writer = _summary_writer(folder, first_epoch)
        self._visualizer = visualizer
        self._preprocessing = preprocessing

    def images(self, epoch: int, images: Tensor) -> None:
        """Shows the first images of the epoch's first batch, as the network sees them."""
        if self._visualizer.enabled and self._visualizer.num_images:
            shown = pixels_from_input(images[: self._visualizer.num_images], self._preprocessing)
            self._writer.add_images("training images", shown, epoch)

    def epoch(self, row: EpochRow, model: nn.Module) -> None:
        """Adds the points of an epoch."""
        for name, value in asdict(row).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row.epoch)
        if self._visualizer.enabled and self._visualizer.weight_histograms:
            for name, parameter in model.named_parameters():
                self._writer.add_histogram(name, parameter.detach().cpu(), row.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def pixels_from_input(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Network input [n,C,H,W] as RGB or gray pixels, rounded and clipped."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    pixels = ((images.cpu() * std + mean) * preprocessing.divisor).round().clamp(0, 255).to(torch.uint8)
    if preprocessing.channel_order == "bgr":
        pixels = pixels.flip(1)
    return pixels.numpy()


def _summary_writer(folder: Path, first_epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency("tensorboard", "training", "train") from error
    return SummaryWriter(str(folder), purge_step=first_epoch)
