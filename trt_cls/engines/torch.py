"""Checkpoints run by torch, the reference that every other engine is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.engines.backends import Provider, resolved_provider
from trt_cls.engines.engine import check_images, closed
from trt_cls.errors import DeviceError, EngineError, one_line, require

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from trt_cls.models.checkpoint import Checkpoint


class TorchEngine:
    """A checkpoint's network in evaluation mode, in float32 unless `in_float64` made it."""

    def __init__(self, model: Path | Checkpoint, provider: Provider = "cpu", threads: int | None = None) -> None:
        self._torch = require("torch", "running a checkpoint", "train")
        available = self._torch.cuda.is_available()
        device = resolved_provider(provider, gpu=available)
        if device == "cuda" and not available:
            raise DeviceError(
                f"torch {self._torch.__version__} finds no CUDA device, it has cpu; expected an NVIDIA GPU with its "
                "driver and a CUDA build of torch; install them, or use --provider cpu"
            )
        from trt_cls.models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(model) if isinstance(model, Path) else model
        if threads is not None:
            self._torch.set_num_threads(threads)
        self.contract = checkpoint.contract
        self.backend = f"torch-{device}"
        self._device = device
        self._module: Any = checkpoint.module.to(device).eval()
        self._element = self._torch.float32
        self.temperature = 1.0
        """What the logits are divided by."""

    def in_float64(self) -> TorchEngine:
        """The same network that computes in float64 and rounds its probabilities alone: what float32 rounds from."""
        other = copy(self)
        other._module, other._element = deepcopy(self._module).double(), self._torch.float64
        return other

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`; softmax or sigmoid, which the network leaves out, is done here."""
        check_images(images, self.contract)
        found = self.probabilities(self._torch.from_numpy(np.ascontiguousarray(images)))
        probabilities: NDArray[np.float32] = found.cpu().numpy()
        return probabilities

    def probabilities(self, images: Tensor) -> Tensor:
        """As `infer`, from a tensor on any device to one on the engine's; does not wait for the GPU."""
        torch = self._torch
        if self._module is None:
            raise closed(self.backend)
        with torch.inference_mode(), tf32(torch, False):
            try:
                logits = self._module(images.to(self._device, self._element)) / self.temperature
            except RuntimeError as error:
                raise EngineError(f"{self.backend}: the run failed: {one_line(error)}") from error
            answers = torch.sigmoid(logits) if self.contract.task == "multi" else torch.softmax(logits, dim=1)
            found: Tensor = answers.float()
        return found

    def close(self) -> None:
        """See `Engine.close`."""
        self._module = None


@contextmanager
def tf32(torch: ModuleType, allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32, which has 10 bits of mantissa, for float32 computations on a GPU.

    torch has two sets of names for it, and what the older set is read by both. Its versions 2.9 and 2.10, and their
    compiler, raise where the older are read after the newer were set; so does 2.14 where convolutions are set alone.
    Only where the program has done that, the newer are set here.
    """
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    value: bool | str
    name, value = "allow_tf32", allowed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 2.9 advises the newer, once
            before = [(place, place.allow_tf32) for place in (products, cudnn)]
    except RuntimeError:
        name, value = "fp32_precision", "tf32" if allowed else "ieee"
        before = [(place, place.fp32_precision) for place in (products, cudnn.conv)]
    for place, _ in before:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, earlier in before:
            setattr(place, name, earlier)
