"""The executor on the GPU, as far as no GPU is asked; the rest is in tests/gpu and tests/driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.errors import DeviceError, MissingDependency
from trt_cls.preprocessing import cuda, nvrtc, pillow

COLOR = Preprocessing(3, 40, 36, "center", "bicubic", "bgr", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = Preprocessing(1, 24, 50, "none", "bilinear", "gray", 1.0, (117.3786,), (1.0,))


def test_without_pycuda_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with monkeypatch.context() as without:
        without.setattr(gpu, "visible_gpu", lambda: None)
        with pytest.raises(DeviceError, match="no NVIDIA GPU can be used here"):
            cuda.CudaPreprocessing(COLOR)
    monkeypatch.setattr(gpu, "visible_gpu", lambda: gpu.Gpu("NVIDIA Test", "8.9"))
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
        nvrtc.compiled_kernels("sm_90", tmp_path)


def test_a_cache_that_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "compile_source", lambda *given: b"a kernel")
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"can't be kept in .*file/cache .*Not a directory.*XDG_CACHE_HOME"):
        nvrtc.compiled_kernels("sm_90", tmp_path / "file" / "cache")


@needs_nvrtc
def test_the_kernel_is_compiled_once_and_used_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cubin = nvrtc.compiled_kernels("sm_90", tmp_path / "cache")
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "compile_source", None)
    assert nvrtc.compiled_kernels("sm_90", tmp_path / "cache") == cubin
    monkeypatch.setattr(nvrtc, "nvrtc", lambda: None)
    assert nvrtc.compiled_kernels("sm_90", tmp_path / "cache") == cubin


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not compile preprocess\.cu for sm_35"):
        nvrtc.compiled_kernels("sm_35", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
def test_values_of_bytes_are_those_of_the_cpu(preprocessing: Preprocessing) -> None:
    shades = np.arange(256, dtype=np.uint8).repeat(preprocessing.channels).reshape(1, 256, preprocessing.channels)
    planes = pillow.normalize(shades, preprocessing).reshape(-1, 256)
    np.testing.assert_array_equal(pillow.normalized_bytes(preprocessing), planes)
