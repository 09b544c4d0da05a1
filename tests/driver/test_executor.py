"""The kernels' executors over the stand-in driver: errors, damaged files, closing, threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driver import stand_in
from driver.stand_in import Driver, elsewhere, in_each_thread
from trt_cls import gpu
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError, DeviceError
from trt_cls.files import cache_folder
from trt_cls.preprocessing import cuda, nvrtc
from trt_cls.preprocessing.cuda import CudaAugmentation, CudaPreprocessing

stand_in.require()
pytestmark = pytest.mark.driver
COLOR = Preprocessing(3, 40, 36, "center", "bicubic", "bgr", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ARCHITECTURE = f"sm_{stand_in.CAPABILITY.replace('.', '')}"
GRAY = Preprocessing(1, 24, 50, "none", "bilinear", "gray", 1.0, (117.0,), (1.0,))


def shades(count: int, size: int = 9) -> list[np.ndarray]:
    return [np.full((size, size, 1), shade, np.uint8) for shade in range(count)]


def check(executor: CudaPreprocessing, count: int = 10, size: int = 9) -> None:
    found = executor.preprocess(shades(count, size))
    np.testing.assert_array_equal(found[:, 0, 5, 5], np.arange(count) - np.float32(117))


def test_errors_of_the_driver_and_of_images_are_kept_apart(driver: Driver) -> None:
    with closing(CudaPreprocessing(COLOR)) as executor:
        for allocation in range(4):
            driver.fail("allocation", allocation)
            with pytest.raises(DeviceError, match=r"CUDA failed: cuMem.*Alloc failed: out of memory"):
                executor.preprocess([np.zeros((9, 9, 3), np.uint8)] * 2 ** (2 * allocation))
        driver.repair()
        with pytest.raises(DataError, match="too long and thin"):
            executor.preprocess([np.zeros((1, 500_000, 3), np.uint8)])
        assert executor.preprocess([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 3, 40, 36)


@in_each_thread
@pytest.mark.parametrize("call", ["cuStreamCreate", "cuModuleGetFunction"])
@pytest.mark.parametrize("kind", [CudaPreprocessing, CudaAugmentation])
def test_what_does_not_open_leaves_nothing(
    driver: Driver, kind: type[CudaPreprocessing], call: str, where: Callable[[Callable[[], Any]], Any],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    driver.fail(call)

    def fail() -> None:
        with pytest.raises(DeviceError, match="CUDA failed"):
            kind(GRAY)

    where(fail)
    driver.assert_all_freed()
    assert capfd.readouterr().err == ""


@in_each_thread
def test_memory_of_a_batch_that_found_no_more_is_given_back(
    driver: Driver, where: Callable[[Callable[[], Any]], Any]
) -> None:
    with closing(CudaPreprocessing(GRAY)) as executor:
        driver.fail("allocation", 1)

        def fail() -> None:
            with pytest.raises(DeviceError, match="out of memory"):
                executor.preprocess(shades(3))

        where(fail)
        driver.repair()
        check(executor)


@pytest.mark.parametrize("call", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"])
def test_a_gpu_that_can_not_be_had_is_one_error(driver: Driver, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has it to itself, or its memory is full."""
    CudaPreprocessing(GRAY).close()
    monkeypatch.setattr(gpu, "_retained", gpu._retained.__wrapped__)
    driver.fail(call)
    with pytest.raises(DeviceError, match="CUDA failed"):
        CudaPreprocessing(GRAY)


@pytest.mark.parametrize("good", [True, False], ids=["once", "and not again"])
def test_a_damaged_kernel_in_the_cache_is_compiled_anew(
    driver: Driver, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nvrtc.compiled_kernels(ARCHITECTURE, cache_folder()).read_bytes()
    compiled = [bytes(100), whole if good else bytes(100)]
    monkeypatch.setattr(nvrtc, "compile_source", lambda *given: compiled.pop(0))
    monkeypatch.setattr(cuda, "cache_folder", lambda: tmp_path)
    nvrtc.compiled_kernels(ARCHITECTURE, tmp_path)
    if good:
        with closing(CudaPreprocessing(GRAY)) as executor:
            check(executor)
    else:
        with pytest.raises(DeviceError, match="cuModuleLoad failed"):
            CudaPreprocessing(GRAY)
    assert compiled == []


@pytest.mark.parametrize("kind", [CudaPreprocessing, CudaAugmentation])
def test_a_closed_executor_says_so_and_closes_twice(driver: Driver, kind: type[CudaPreprocessing]) -> None:
    executor = kind(GRAY)
    executor.close()
    executor.close()
    with pytest.raises(DeviceError, match="closed"), executor.current():
        pass


def test_any_number_of_images_is_preprocessed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, and more than one launch takes."""
    assert cuda.MOST_IMAGES <= 65_535, "CUDA has no more blocks along the third axis"
    monkeypatch.setattr(cuda, "MOST_IMAGES", 4)
    launched, grid = [], cuda.grid
    monkeypatch.setattr(cuda, "grid", lambda pixels, images: launched.append(images) or grid(pixels, images))
    with closing(CudaPreprocessing(GRAY)) as executor:
        assert executor.preprocess([]).shape == (0, 1, 24, 50)
        before = driver.count("launches")
        check(executor)
        assert driver.count("launches") - before == len(launched) == 3
    assert max(launched) == 4


def test_an_executor_serves_and_closes_in_any_thread(driver: Driver) -> None:
    executor = elsewhere(lambda: CudaPreprocessing(GRAY))
    check(executor)
    elsewhere(lambda: check(executor, 3, size=400))  # staging grows there
    check(executor)
    elsewhere(executor.close)


@in_each_thread
def test_an_executor_that_was_forgotten_gives_everything_back(
    driver: Driver, where: Callable[[Callable[[], Any]], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    kept = [CudaPreprocessing(GRAY)]
    check(kept[0])
    where(kept.clear)
    driver.assert_all_freed()
    assert capfd.readouterr().err == ""
