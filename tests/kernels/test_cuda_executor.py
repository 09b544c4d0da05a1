"""The executor on the GPU: with the driver played by the CPU where there is none, and on a real one."""

from __future__ import annotations

import runpy
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import StandIn
from PIL import Image

from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError, DeviceError, MissingDependency
from trt_cls.preprocessing import cuda, pillow

COLOR = Preprocessing(3, 40, 36, "center", "bicubic", "bgr", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = Preprocessing(1, 24, 50, "none", "bilinear", "gray", 1.0, (117.3786,), (1.0,))


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


needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on PATH")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    gpu = StandIn((1, 1))
    gpu.install(monkeypatch)
    return gpu


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_tensors_are_those_of_the_executor_on_the_cpu(preprocessing: Preprocessing, stand_in: StandIn) -> None:
    check_batches(preprocessing)
    stand_in.assert_all_freed()


def test_what_compute_sanitizer_runs_finds_no_difference(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).resolve().parents[1] / "gpu" / "small_batches.py"
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out) == (
        0, "40 descriptions × 8 images: 0 values differ from the CPU's\n",
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_tensors_are_those_of_the_executor_on_the_cpu_bit_for_bit_on_a_gpu(preprocessing: Preprocessing) -> None:
    if gpu.visible_gpu() is None or find_spec("pycuda") is None:
        pytest.skip("no NVIDIA GPU, or no pycuda")
    check_batches(preprocessing)


def test_errors_of_the_driver_and_of_images_are_told_apart(stand_in: StandIn) -> None:
    executor = cuda.CudaPreprocessing(COLOR)
    for allocation in range(4):
        stand_in.fail_allocation_after = allocation
        with pytest.raises(DeviceError, match=r"CUDA failed: cuMemAlloc failed: out of memory"):
            executor.preprocess([np.zeros((9, 9, 3), np.uint8)] * 2 ** (2 * allocation))
    stand_in.fail_allocation_after = -1
    with pytest.raises(DataError, match="too long and thin"):
        executor.preprocess([np.zeros((1, 500_000, 3), np.uint8)])
    assert executor.preprocess([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 3, 40, 36)
    executor.close()
    stand_in.assert_all_freed()


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


@pytest.fixture(scope="module")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda.compiled("sm_90", tmp_path_factory.mktemp("compiled") / "cache")


@needs_nvcc
def test_without_a_compiler_what_it_made_before_is_used(
    cubin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cuda, "TOOLKIT", str(tmp_path / "nvcc"))
    assert cuda.compiled("sm_90", cubin.parent) == cubin
    with pytest.raises(DeviceError, match="nvcc"):
        cuda.compiled("sm_89", cubin.parent)


@needs_nvcc
def test_the_kernel_is_compiled_once(cubin: Path) -> None:
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    written = cubin.stat().st_mtime_ns
    assert cuda.compiled("sm_90", cubin.parent) == cubin
    assert cubin.stat().st_mtime_ns == written


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not compile the kernel for sm_35"):
        cuda.compiled("sm_35", tmp_path)
    assert list(tmp_path.iterdir()) == []
