"""The executor on the GPU: `kernels/preprocess.cu` through pycuda, equal to the executor on the CPU to the bit.

Knows compiling, memory and the launch; the numbers come from `packing`. pycuda is imported when a GPU is opened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.errors import DeviceError
from trt_cls.files import atomic
from trt_cls.gpu import cuda_driver, current_context
from trt_cls.preprocessing.packing import BLOCK, grid, kernel_name, normalization, pack, scalars
from trt_cls.preprocessing.pillow import Floats, Pixels

KERNEL = Path(__file__).with_name("preprocess.cu")
TOOLKIT = "/usr/local/cuda/bin/nvcc"
"""Where the CUDA toolkit is installed if nobody says otherwise; JetPack does not put it on PATH."""


class CudaPreprocessing:
    """One description's kernel on the first GPU, in its primary context, which torch and TensorRT share.

    Raises:
        MissingDependency: pycuda is not installed.
        DeviceError: there is no GPU, or no compiler for the kernel.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._cuda = cuda_driver("preprocessing on the GPU", "preprocess on the CPU")
        device = self._cuda.Device(0)
        cubin = compiled("sm_{}{}".format(*device.compute_capability()), cache_folder())
        self._primary = device.retain_primary_context()
        with self._current():
            self._module = self._cuda.module_from_file(str(cubin))
            # Prepared: pycuda caches the arguments of other calls for ever, and so device memory that was given up.
            self._kernel = self._module.get_function(kernel_name(preprocessing, "float32")).prepare("PPPPiiiP")
            self._stream = self._cuda.Stream()
            self._input, self._output = _Buffer(self._cuda), _Buffer(self._cuda)

    def preprocess(self, images: Sequence[Pixels]) -> Floats:
        """The network's input [n,C,H,W] for images as `pillow.hwc` returns them, of any sizes.

        Raises:
            DataError: an image is too long and thin for a crop.
            DeviceError: the GPU failed, or has not enough memory.
        """
        packed = pack(images, self._preprocessing)
        # One copy brings all to the GPU. What must be aligned stands first: 8 bytes, 4 bytes, 4 bytes, then pixels.
        parts = [_bytes(packed.sources), _bytes(packed.tables), _bytes(normalization(self._preprocessing))]
        starts = np.cumsum([0, *(part.size for part in parts)])
        parts += packed.pixels
        shape = len(images), *self._preprocessing.input_shape
        with self._current():
            host, device = self._input.of_size(sum(part.size for part in parts))
            host_output, device_output = self._output.of_size(int(np.prod(shape)) * 4)
            np.concatenate(parts, out=host)
            self._cuda.memcpy_htod_async(device, host, self._stream)
            sources, tables, numbers, pixels = (int(device) + int(start) for start in starts)
            arguments = pixels, sources, tables, numbers, *scalars(self._preprocessing), int(device_output)
            self._kernel.prepared_async_call(grid(self._preprocessing, len(images)), BLOCK, self._stream, *arguments)
            self._cuda.memcpy_dtoh_async(host_output, device_output, self._stream)
            self._stream.synchronize()
        return host_output.view(np.float32).reshape(shape).copy()

    def close(self) -> None:
        """Gives back what it holds on the GPU."""
        with self._current():
            del self._module, self._kernel, self._stream, self._input, self._output
        self._primary.detach()

    def _current(self) -> AbstractContextManager[None]:
        return current_context(self._cuda, self._primary, DeviceError, "preprocessing on the GPU")


class _Buffer:
    """Page-locked host memory and device memory beside it, which grow with what is asked for."""

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda = cuda
        self._host: Pixels = np.empty(0, np.uint8)
        self._device: Any = None

    def of_size(self, size: int) -> tuple[Pixels, Any]:
        if size > self._host.size:
            # A quarter to spare: batches differ in size, and page-locking takes milliseconds.
            self._host = self._cuda.pagelocked_empty(size + size // 4, np.uint8)
            self._device = self._cuda.mem_alloc(self._host.nbytes)
        return self._host[:size], self._device


def compiled(architecture: str, folder: Path) -> Path:
    """The kernel for `architecture` ("sm_90"), compiled into `folder` where that has not been done yet.

    Raises:
        DeviceError: there is no nvcc, or it does not know the architecture.
    """
    nvcc = shutil.which("nvcc") or shutil.which(TOOLKIT)
    if nvcc is None:
        raise DeviceError(
            "the CUDA kernel is compiled at first use, and nvcc is neither on PATH nor in /usr/local/cuda; "
            "install the CUDA toolkit, or preprocess on the CPU"
        )
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(KERNEL.read_bytes() + version + architecture.encode()).hexdigest()[:16]
    cubin = folder / f"preprocess-{architecture}-{key}.cubin"
    if not cubin.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(cubin) as beside:
            command = [nvcc, "-cubin", f"-arch={architecture}", "-o", str(beside), str(KERNEL)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = " ".join((done.stderr or done.stdout).split())
                raise DeviceError(
                    f"{nvcc} does not compile the kernel for {architecture}: {reason}; expected a CUDA toolkit that "
                    "knows this GPU, 13.0 does from sm_75 on; install one, or preprocess on the CPU"
                )
    return cubin


def cache_folder() -> Path:
    """Where compiled kernels are kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-cls"


def _bytes(array: np.ndarray[Any, Any]) -> Pixels:
    return array.view(np.uint8).reshape(-1)
