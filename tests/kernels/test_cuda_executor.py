"""The executor on the GPU: with the driver played by the CPU where there is none, and on a real one."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import StandIn
from PIL import Image
from pixel_reference import preprocess

from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError, DeviceError, MissingDependency
from trt_cls.preprocessing import cuda, nvrtc, pillow

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
        expected = np.stack([preprocess(image, preprocessing) for image in images])
        np.testing.assert_array_equal(tensors.view(np.uint32), expected.view(np.uint32))


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


needs_nvrtc = pytest.mark.skipif(nvrtc.nvrtc() is None, reason="no NVRTC library")


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: None)


@pytest.mark.usefixtures("without_nvrtc")
def test_without_a_compiler_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no NVRTC.*pip install nvidia-cuda-nvrtc"):
        nvrtc.compiled("sm_90", tmp_path)


@needs_nvrtc
def test_the_kernel_is_compiled_once_and_used_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cubin = nvrtc.compiled("sm_90", tmp_path / "cache")
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "compile_source", None)
    assert nvrtc.compiled("sm_90", tmp_path / "cache") == cubin
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: None)
    assert nvrtc.compiled("sm_90", tmp_path / "cache") == cubin


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not compile preprocess\.cu for sm_35"):
        nvrtc.compiled("sm_35", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_kernel_in_the_cache_is_compiled_anew(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, load = tmp_path / "kernels.cubin", stand_in.driver.module_from_file

    def compiled(architecture: str, folder: Path) -> Path:
        if not file.exists():
            file.write_text("good")
        return file

    def module_from_file(path: str) -> object:
        if Path(path).read_text() != "good":
            raise stand_in.driver.Error("cuModuleLoad failed: device kernel image is invalid")
        return load(path)

    file.write_text("damaged")
    monkeypatch.setattr(cuda, "compiled", compiled)
    monkeypatch.setattr(stand_in.driver, "module_from_file", module_from_file)
    check_batches(GRAY)


def test_a_closed_executor_says_so_and_closes_twice(stand_in: StandIn) -> None:
    executors = cuda.CudaPreprocessing(GRAY), cuda.CudaAugmentation(GRAY)
    for executor in executors:
        executor.close()
        executor.close()
    with pytest.raises(DeviceError, match="closed"):
        executors[0].preprocess([np.zeros((9, 9, 1), np.uint8)])
    with pytest.raises(DeviceError, match="closed"):
        executors[1].launch(0, (0, 0, 0, 0, 0), 1, 0)
    stand_in.assert_all_freed()


def test_any_number_of_images_is_preprocessed(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, and more than one launch takes."""
    monkeypatch.setattr(cuda, "MOST_IMAGES", 4)
    executor = cuda.CudaPreprocessing(GRAY)
    images = [np.full((9, 9, 1), shade, np.uint8) for shade in range(10)]
    assert executor.preprocess([]).shape == (0, 1, 24, 50)
    np.testing.assert_array_equal(executor.preprocess(images)[:, 0, 0, 0], np.arange(10) - np.float32(117.3786))
    executor.close()


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_values_of_bytes_are_those_of_the_cpu(preprocessing: Preprocessing) -> None:
    shades = np.arange(256, dtype=np.uint8).repeat(preprocessing.channels).reshape(1, 256, preprocessing.channels)
    planes = pillow.normalize(shades, preprocessing).reshape(-1, 256)
    np.testing.assert_array_equal(pillow.normalized_bytes(preprocessing), planes)
