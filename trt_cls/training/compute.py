"""Where and in which precision the training computes, with the reason; and what makes it repeatable.

Nothing here knows about networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trt_cls.errors import DeviceError, RequestError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device, a precision and why it was chosen."""

    device: torch.device
    precision: str
    """"fp32", "bf16" or "fp16"; weights and optimizer are float32 in all of them."""
    reason: str

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss for fp16, whose gradients would underflow; does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{name} · torch {torch.__version__} · {self.precision} ({self.reason})"


def choose_compute(device: str, precision: str) -> Compute:
    """The device ("auto", "cpu", "cuda") and the precision ("auto", "fp32", "bf16", "fp16") that were asked for.

    Raises:
        DeviceError: the device is not there, or has no bf16.
        RequestError: fp16 on the CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch finds no GPU; expected an NVIDIA GPU with its driver; use --device cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return _on_cpu(precision)
    return _on_gpu(precision)


def _on_cpu(precision: str) -> Compute:
    if precision == "fp16":
        raise RequestError("--precision fp16: not on a CPU; expected fp32 or bf16 there; use --precision fp32")
    if precision == "auto":
        return Compute(torch.device("cpu"), "fp32", "a CPU gains nothing from less")
    return Compute(torch.device("cpu"), precision, "as asked")


def _on_gpu(precision: str) -> Compute:
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise DeviceError(
            f"--precision bf16: SM {major}.{minor} has no bf16; expected SM 8.0 or later; use fp16 or fp32"
        )
    if precision != "auto":
        return Compute(device, precision, "as asked")
    if has_bf16:
        return Compute(device, "bf16", f"SM {major}.{minor} supports it")
    return Compute(device, "fp16", f"SM {major}.{minor} has no bf16")


@contextmanager
def repeatable() -> Iterator[None]:
    """Makes torch choose deterministic algorithms, and say so in a warning where an operation has none."""
    debugging: Any = torch.utils.deterministic
    cudnn: Any = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, trying, convolutions = debugging.fill_uninitialized_memory, cudnn.benchmark, cudnn.conv.fp32_precision
    # cuBLAS reads it when its first handle is made: without a fixed workspace its sums depend on the streams
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a pass over every new tensor that only finds bugs
    cudnn.benchmark = False
    cudnn.conv.fp32_precision = "ieee"  # torch's default is TF32: 10 bits of mantissa are not fp32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debugging.fill_uninitialized_memory = filling
        cudnn.benchmark, cudnn.conv.fp32_precision = trying, convolutions
