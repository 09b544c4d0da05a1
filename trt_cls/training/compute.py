"""Device and precision of a training, with the reason for the choice; deterministic algorithms; torch.compile.

Does not know: the networks.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from trt_cls.engines.torch import tf32
from trt_cls.errors import DeviceError, RequestError, TrtClsError
from trt_cls.training.scaling import Scaler

FEW_CHANNELS = 16
"""Channels of oneDNN's widest block, that of AVX-512."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
LARGEST_KEPT = 32 << 20
"""Bytes: glibc has no larger M_MMAP_THRESHOLD, and chooses this one itself in time."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Devices, a precision, and why it was chosen."""

    devices: tuple[torch.device, ...]
    """One, or one for each stage of the network."""
    precision: str
    """"fp32", "tf32", "bf16" or "fp16"; weights and optimizer are float32 in all of them."""
    reason: str

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.devices[0]

    @property
    def last(self) -> torch.device:
        """The device of logits and targets."""
        return self.devices[-1]

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights.

        Tensor cores work on NHWC. On an AMD EPYC with AVX-512 a step in fp32 is 1.2 (resnet18) to 1.9 times
        (mobilenet_v2) as fast with it, one in bf16 0.9 to 1.2 times.
        """
        on_cpu_in_bf16 = self.device.type == "cpu" and self.precision == "bf16"
        return torch.contiguous_format if on_cpu_in_bf16 else torch.channels_last

    def place(self, model: nn.Module) -> nn.Module:
        """`model` on the first device, in the layout; on a CPU without the layers that oneDNN can't train."""
        if self.device.type == "cpu":
            for layer in model.modules():
                if isinstance(layer, nn.Conv2d) and _overruns(layer):
                    setattr(layer, "_conv_forward", partial(_on_taken_pixels, layer.stride))  # noqa: B010
        moved: nn.Module = model.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        return moved

    def moved(self, tensor: Tensor) -> Tensor:
        """Any tensor on the device."""
        return tensor.to(self.device, non_blocking=True)

    def images(self, images: Tensor) -> Tensor:
        """Images [n,C,H,W] on the device, in the layout."""
        return images.to(self.device, non_blocking=True, memory_format=self.layout)

    def targets(self, targets: Tensor) -> Tensor:
        """Targets on the device of the logits."""
        return targets.to(self.last, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """The context in which a forward pass runs."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def scaler(self) -> Scaler:
        """Scales the loss for fp16, whose gradients would underflow; does nothing in the other precisions."""
        return Scaler(self.device.type, enabled=self.precision == "fp16")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        if len(self.devices) > 1:
            name = f"{len(self.devices)} stages on {name}"
        return f"{name} · torch {torch.__version__} · {self.precision} ({self.reason})"


def choose_compute(device: str, precision: str, stages: int = 1) -> Compute:
    """The device ("auto", "cpu", "cuda") and the precision ("auto", "fp32", "tf32", "bf16", "fp16") asked for.

    A network in several stages takes that many GPUs, from the current one on; on a CPU all stages share it.

    Raises:
        DeviceError: the device is not there, or has no bf16 or TF32.
        RequestError: fp16 or TF32 on the CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch finds no GPU; expected an NVIDIA GPU with its driver; use --device cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return Compute((torch.device("cpu"),) * stages, *_precision_on_cpu(precision))
    first, found = torch.cuda.current_device(), torch.cuda.device_count()
    if first + stages > found:
        raise DeviceError(
            f"train_config.model_parallelism: {stages} stages from GPU {first} on, but torch finds {found} GPUs; "
            "expected one for each stage of each process; give fewer shares"
        )
    return Compute(tuple(torch.device("cuda", first + stage) for stage in range(stages)), *_precision_on_gpu(precision))


@contextmanager
def repeatable(compute: Compute) -> Iterator[None]:
    """Makes torch use deterministic algorithms, with a warning where an operation has none.

    Runs on one machine then repeat to the bit; another processor rounds in another order. fp32 is IEEE's; in every
    other precision a GPU may use TF32 (10 bits of mantissa) for what is computed in float32. On a GPU attention is
    computed by matrix products and a softmax: the gradients of torch's faster kernels do not repeat as long as it only
    warns.
    """
    debugging: Any = torch.utils.deterministic
    cudnn: Any = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling, trying = debugging.fill_uninitialized_memory, cudnn.benchmark
    # cuBLAS reads it when its first handle is made: without a fixed workspace its sums depend on the streams
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a pass over every new tensor, for debugging only
    cudnn.benchmark = False
    try:
        attention = sdpa_kernel(SDPBackend.MATH) if compute.device.type == "cuda" else nullcontext()
        with tf32(torch, compute.precision != "fp32"), attention:
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debugging.fill_uninitialized_memory = filling
        cudnn.benchmark = trying


@contextmanager
def memory_kept(compute: Compute) -> Iterator[None]:
    """Lets a training on a CPU keep the memory that a step frees for the next one, with glibc.

    Else it goes back to the system and comes again page by page: 5,600 faults in a step of mobilenet_v2 with 16 images
    of 64×64, an eighth of its CPU time, and 200 with it.
    """
    library = ctypes.CDLL(None)
    if compute.device.type != "cpu" or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)  # as glibc's own rule sets it
        library.malloc_trim(0)


def compiled(network: nn.Module) -> Any:
    """`network`, compiled for each batch size, so that a resumed training computes with the kernels it began with.

    Kernels for any size round in another order than those for one size.
    """
    return torch.compile(network, dynamic=False)


@contextmanager
def compiler_failures_reported() -> Iterator[None]:
    """A context in which a compiled network is called.

    Raises:
        TrtClsError: it can't be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TrtClsError(
            f"--compile: torch can't compile the network here ({reason.strip()}); expected a C++ compiler on a CPU, "
            "triton and a C compiler for a GPU; install them, or train without --compile in another folder"
        ) from error


def _overruns(layer: nn.Conv2d) -> bool:
    """Whether oneDNN writes beyond its memory for this layer's gradient, as it does in channels_last.

    It is a 1×1 convolution with strides, of fewer channels than a block of theirs has, 8 with AVX2 and 16 with AVX-512:
    https://github.com/uxlfoundation/oneDNN/issues/6035. Pruning makes such layers.
    """
    plain = (layer.kernel_size, layer.padding, layer.groups) == ((1, 1), (0, 0), 1)
    return plain and max(layer.stride) > 1 and layer.in_channels < FEW_CHANNELS


def _on_taken_pixels(stride: tuple[int, ...], images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution with strides, as one without on the pixels that it takes."""
    return functional.conv2d(images[..., :: stride[0], :: stride[1]], weight, bias)


def _precision_on_cpu(precision: str) -> tuple[str, str]:
    if precision in ("fp16", "tf32"):
        raise RequestError(f"--precision {precision}: not on a CPU; expected fp32 or bf16 there; use --precision fp32")
    if precision == "auto":
        return "fp32", "the exact one; bf16 is faster on a CPU with AVX512-BF16 or AMX"
    return precision, "as requested"


def _precision_on_gpu(precision: str) -> tuple[str, str]:
    major, minor = torch.cuda.get_device_capability()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision in ("bf16", "tf32") and not has_bf16:
        raise DeviceError(
            f"--precision {precision}: SM {major}.{minor} has no {precision}; expected SM 8.0 or later; "
            "use fp16 or fp32"
        )
    if precision != "auto":
        return precision, "as requested"
    if has_bf16:
        return "bf16", f"SM {major}.{minor} supports it"
    return "fp16", f"SM {major}.{minor} has no bf16"
