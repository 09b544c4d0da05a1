"""The executor on the GPU: with the driver played by the CPU where there is none, and on a real one."""

from __future__ import annotations

import ctypes
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kernels import host
from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError, DeviceError, MissingDependency
from trt_cls.preprocessing import cuda, pillow

COLOR = Preprocessing(3, 40, 36, "center", "bicubic", "bgr", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = Preprocessing(1, 24, 50, "none", "bilinear", "gray", 1.0, (117.3786,), (1.0,))


class Memory:
    """What mem_alloc returns: known by its address alone."""

    def __init__(self, size: int) -> None:
        self.content = ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        return ctypes.addressof(self.content)


class DriverError(Exception):
    pass


class Kernel:
    """A prepared function: launched with addresses and whole numbers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, types: str) -> Kernel:
        assert types == "PPPPiiiP"
        return self

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: object, *arguments: int
    ) -> None:
        _, sources, tables, numbers, *_ = arguments
        assert (sources % 8, tables % 4, numbers % 4) == (0, 0, 0)
        host.launch(self.name, grid, block, arguments)


def copy_in(device: Memory, array: np.ndarray, stream: object) -> None:
    assert array.nbytes <= len(device.content)
    ctypes.memmove(int(device), array.ctypes.data, array.nbytes)


def copy_out(array: np.ndarray, device: Memory, stream: object) -> None:
    assert array.nbytes <= len(device.content)
    ctypes.memmove(array.ctypes.data, int(device), array.nbytes)


def driver() -> SimpleNamespace:
    """The names of pycuda.driver that the executor uses, on the CPU."""
    context = SimpleNamespace(push=lambda: None, detach=lambda: None)
    device = SimpleNamespace(compute_capability=lambda: (9, 0), retain_primary_context=lambda: context)
    return SimpleNamespace(
        Error=DriverError,
        Device=lambda number: device,
        Context=SimpleNamespace(pop=lambda: None),
        Stream=lambda: SimpleNamespace(synchronize=lambda: None),
        module_from_file=lambda path: SimpleNamespace(get_function=Kernel),
        pagelocked_empty=np.empty,
        mem_alloc=Memory,
        memcpy_htod_async=copy_in,
        memcpy_dtoh_async=copy_out,
    )


def check_batches(preprocessing: Preprocessing) -> None:
    """Batches of growing and of shrinking sizes, whose tensors stay as they are when the next ones come."""
    random = np.random.default_rng(0)
    executor = cuda.CudaPreprocessing(preprocessing)
    results = []
    for count, largest in ((1, 30), (3, 90), (7, 200), (2, 60)):
        sizes = random.integers(1, largest, (count, 2)).tolist()
        shapes = [(*size, 3) if preprocessing.channels == 3 else tuple(size) for size in sizes]
        images = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
        results.append((images, executor.preprocess([pillow.hwc(image) for image in images])))
    executor.close()
    for images, tensors in results:
        expected = np.stack([pillow.preprocess(image, preprocessing) for image in images])
        np.testing.assert_array_equal(tensors.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_tensors_are_those_of_the_executor_on_the_cpu(
    preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.build()
    monkeypatch.setattr(cuda, "cuda_driver", lambda *told: driver())
    monkeypatch.setattr(cuda, "compiled", lambda architecture, folder: Path(f"{architecture}.cubin"))
    check_batches(preprocessing)


@pytest.mark.gpu
@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_tensors_are_those_of_the_executor_on_the_cpu_bit_for_bit_on_a_gpu(preprocessing: Preprocessing) -> None:
    if gpu.visible_gpu() is None or find_spec("pycuda") is None:
        pytest.skip("no NVIDIA GPU, or no pycuda")
    check_batches(preprocessing)


def test_errors_of_the_driver_and_of_images_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(size: int) -> None:
        raise DriverError("cuMemAlloc failed:\nout of memory")

    fake = driver()
    monkeypatch.setattr(fake, "mem_alloc", no_memory)
    monkeypatch.setattr(cuda, "cuda_driver", lambda *told: fake)
    monkeypatch.setattr(cuda, "compiled", lambda architecture, folder: Path("sm_90.cubin"))
    executor = cuda.CudaPreprocessing(COLOR)
    with pytest.raises(DeviceError, match=r"CUDA failed: cuMemAlloc failed: out of memory"):
        executor.preprocess([np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(DataError, match="too long and thin"):
        executor.preprocess([np.zeros((1, 500_000, 3), np.uint8)])


def test_without_pycuda_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pycuda.*trt-cls\[gpu\]"):
        cuda.CudaPreprocessing(COLOR)


def test_without_a_driver_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu, "import_module", no_library)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here \(libcuda\.so\.1"):
        cuda.CudaPreprocessing(COLOR)


def test_without_a_compiler_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cuda, "TOOLKIT", str(tmp_path / "nvcc"))
    with pytest.raises(DeviceError, match=r"nvcc.*install the CUDA toolkit"):
        cuda.compiled("sm_90", tmp_path)


needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on PATH")


@needs_nvcc
def test_the_kernel_is_compiled_once(tmp_path: Path) -> None:
    cubin = cuda.compiled("sm_90", tmp_path / "cache")
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    written = cubin.stat().st_mtime_ns
    assert cuda.compiled("sm_90", tmp_path / "cache") == cubin
    assert cubin.stat().st_mtime_ns == written


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not compile the kernel for sm_35"):
        cuda.compiled("sm_35", tmp_path)
    assert list(tmp_path.iterdir()) == []
