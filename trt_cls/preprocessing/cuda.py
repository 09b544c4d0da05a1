"""The executors on the GPU: `kernels/preprocess.cu` through pycuda, equal to those on the CPU to the bit.

Knows compiling, memory and the launch; the numbers come from `packing`. pycuda is imported when a GPU is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trt_cls.contract import Preprocessing
from trt_cls.errors import DeviceError
from trt_cls.files import cache_folder
from trt_cls.gpu import NON_BLOCKING, GpuOwner, close_at_exit, cuda_driver, current_context, primary_context
from trt_cls.preprocessing.nvrtc import compiled_kernels
from trt_cls.preprocessing.packing import BLOCK, CHANGE, MOST_IMAGES, SOURCE, Bundle, grid, kernel_name, pack, scalars
from trt_cls.preprocessing.pillow import Floats, Pixels


class Kernels:
    """The kernels on one GPU, in its primary context, which torch and TensorRT share.

    Raises:
        MissingDependency: pycuda is not installed.
        DeviceError: there is no GPU, or no compiler for the kernels.
    """

    def __init__(self, device: int = 0) -> None:
        self.cuda = cuda_driver("preprocessing on the GPU", "preprocess on the CPU")
        self._primary = primary_context(self.cuda, device)
        gpu = self.cuda.Device(device)
        self.closed = False
        with self.current():
            self._module = self._loaded("sm_{}{}".format(*gpu.compute_capability()))

    def _loaded(self, architecture: str) -> Any:
        cubin = compiled_kernels(architecture, cache_folder())
        try:
            return self.cuda.module_from_file(str(cubin))
        except self.cuda.Error:  # a damaged file: it is compiled anew, once
            with suppress(OSError):
                cubin.unlink()
            return self.cuda.module_from_file(str(compiled_kernels(architecture, cache_folder())))

    def function(self, name: str, arguments: str) -> Any:
        """The kernel `name`, whose `arguments` are given as in Python's struct; the context must be current."""
        # Prepared: pycuda caches the arguments of other calls for ever, and so device memory that was given up.
        return self._module.get_function(name).prepare(arguments)

    def current(self) -> AbstractContextManager[None]:
        """Makes the primary context this thread's; turns CUDA's errors into a DeviceError.

        Raises:
            DeviceError: the kernels are closed.
        """
        if self.closed:
            raise DeviceError("preprocessing on the GPU: the executor is closed; open it again")
        return current_context(self.cuda, self._primary, DeviceError, "preprocessing on the GPU")

    def close(self) -> None:
        """Gives back what it holds on the GPU."""
        with self.current():
            self.closed = True
            del self._module


class CudaPreprocessing(GpuOwner):
    """One description's kernel on the first GPU.

    Raises:
        MissingDependency: pycuda is not installed.
        DeviceError: there is no GPU, or no compiler for the kernel.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        if preprocessing.embedded:
            raise DeviceError(
                "the network takes uint8 pixels and normalizes them itself, and the kernel gives float32; expected a "
                "file exported without --embed-preprocessing; name one, or preprocess on the CPU"
            )
        self._preprocessing = preprocessing
        self._kernels = Kernels()
        self.cuda = self._kernels.cuda
        with self.current():
            self._kernel = self._kernels.function(kernel_name(preprocessing), "PPPPiiiP")
            self._stream = self.cuda.Stream(NON_BLOCKING)
            self._input, self._output = Staging(self.cuda), Staging(self.cuda)
        close_at_exit(self)

    def preprocess(self, images: Sequence[Pixels]) -> Floats:
        """The network's input [n,C,H,W] for images as `pillow.hwc` returns them, of any sizes.

        Raises:
            DataError: an image is too long and thin for a crop.
            DeviceError: the GPU failed, or has not enough memory.
        """
        shape = len(images), *self._preprocessing.input_shape
        with self.current():
            if not images:
                return np.empty(shape, np.float32)
            host_output, device_output = self._output.of_size(int(np.prod(shape)) * 4)
            self.enqueue(images, self._input, int(device_output), self._stream)
            self.cuda.memcpy_dtoh_async(host_output, device_output, self._stream)
            self._stream.synchronize()
        return host_output.view(np.float32).reshape(shape).copy()

    def new_staging(self) -> Staging:
        """Memory for the input of one batch in flight; the primary context must be current."""
        return Staging(self.cuda)

    def enqueue(self, images: Sequence[Pixels], staging: Staging, output: int, stream: Any) -> None:
        """Queues one copy and the kernel, which writes the network's input to the GPU address `output`.

        The primary context must be current, and what was queued with `staging` before must be done.

        Raises:
            DataError: an image is too long and thin for a crop.
        """
        self.launch(self.copy(images, staging, stream), output, stream)

    def copy(self, images: Sequence[Pixels], staging: Staging, stream: Any) -> Placed:
        """The first half of `enqueue`."""
        bundle = Bundle(pack(images, self._preprocessing), self._preprocessing)
        host, device = staging.of_size(bundle.size)
        bundle.write(host)
        self.cuda.memcpy_htod_async(device, host, stream)
        return Placed(tuple(int(device) + start for start in bundle.starts), len(images), staging)

    def launch(self, placed: Placed, output: int, stream: Any) -> None:
        """The second half of `enqueue`, which can be repeated."""
        launch(self._kernel, self._preprocessing, placed.addresses, placed.images, output, stream)

    def close(self) -> None:
        """Frees GPU memory; a second call does nothing."""
        if self._kernels.closed:
            return
        with self.current():
            del self._kernel, self._stream, self._input, self._output
        self._kernels.close()

    def current(self) -> AbstractContextManager[None]:
        """Makes the primary context this thread's; turns CUDA's errors into a DeviceError."""
        return self._kernels.current()


class CudaAugmentation(GpuOwner):
    """The kernel of a training on one GPU, with a stream for it that computing need not wait for.

    Raises:
        MissingDependency: pycuda is not installed.
        DeviceError: there is no such GPU, or no compiler for the kernel.
    """

    def __init__(self, preprocessing: Preprocessing, device: int = 0) -> None:
        self._preprocessing = preprocessing
        self._kernels = Kernels(device)
        self.cuda = self._kernels.cuda
        with self.current():
            self._kernel = self._kernels.function(kernel_name(preprocessing, "augment"), "PPPPPiiiP")
            self.stream = self.cuda.Stream(NON_BLOCKING)
        close_at_exit(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image that it makes."""
        return self._preprocessing.input_shape

    def launch(self, bundle: int, starts: Sequence[int], images: int, output: int) -> None:
        """Queues the kernel on `stream`, for a `packing.Bundle` at a GPU address; it writes to `output`.

        Raises:
            DeviceError: the GPU failed.
        """
        with self.current():
            addresses = [bundle + start for start in starts]
            launch(self._kernel, self._preprocessing, addresses, images, output, self.stream)

    def close(self) -> None:
        """Waits for queued work, then frees GPU memory; a second call does nothing."""
        if self._kernels.closed:
            return
        with self.current():
            self.stream.synchronize()
            del self._kernel, self.stream
        self._kernels.close()

    def current(self) -> AbstractContextManager[None]:
        """Makes the primary context this thread's; turns CUDA's errors into a DeviceError."""
        return self._kernels.current()


def launch(
    kernel: Any, preprocessing: Preprocessing, addresses: Sequence[int], images: int, output: int, stream: Any
) -> None:
    """Queues the kernel on a bundle that begins at `addresses`, as often as its number of images takes."""
    pixels, *heads, tables, values = addresses
    for first in range(0, images, MOST_IMAGES):
        here = [head + first * kind.itemsize for head, kind in zip(heads, (SOURCE, CHANGE), strict=False)]
        arguments = pixels, *here, tables, values, *scalars(preprocessing)
        size = grid(preprocessing, min(images - first, MOST_IMAGES))
        at = output + first * int(np.prod(preprocessing.input_shape)) * 4
        kernel.prepared_async_call(size, BLOCK, stream, *arguments, at)


class Placed(NamedTuple):
    """A batch on the GPU."""

    addresses: tuple[int, ...]
    """Of pixels, sources, tables and numbers, the kernel's first arguments."""
    images: int
    memory: Staging
    """What the addresses point into; it lives as long as they are known."""


class Staging:
    """Page-locked host memory and device memory beside it, which grow with what is asked for."""

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda = cuda
        self._host: Pixels = np.empty(0, np.uint8)
        self._device: Any = None

    def of_size(self, size: int) -> tuple[Pixels, Any]:
        """The memory on the host and on the GPU; nothing may be at work on either."""
        if size > self._host.size:
            # A quarter to spare: batches differ in size, and page-locking takes milliseconds.
            host = self._cuda.pagelocked_empty(size + size // 4, np.uint8)
            self._host, self._device = host, self._cuda.mem_alloc(host.nbytes)
        return self._host[:size], self._device
