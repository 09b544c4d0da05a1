"""The library in C++ against Pillow and numpy: equal to the bit."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support import cuda_on_cpu
from support.image_strategies import CROPS, EXTREME, FILTERS, Case, cases, lengths, noise, plain, reachable
from support.pixel_reference import COLOR, GRAY, preprocess, preprocessing_of
from support.shared_data import all_photos, odd_images
from trt_cls.contract import Preprocessing
from trt_cls.errors import DataError
from trt_cls.preprocessing import cpu, pillow
from trt_cls.preprocessing.images import read
from trt_cls.preprocessing.pillow import Axis, Pixels, axes

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "kernels" / "preprocess_host.cpp"


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The library of the source that stands here, whatever is installed."""
    compiled = build()
    monkeypatch.setattr(cpu, "shared_library", lambda: compiled)
    return compiled


def build() -> ctypes.CDLL:
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    return cuda_on_cpu.compiled(SOURCE, [*module["extra-compile-args"], "-Wall", "-Wextra", "-Werror"])


def fit(pixels: Pixels, preprocessing: Preprocessing) -> Pixels:
    """What `pillow.fit` does, by the executor on the CPU."""
    return cpu.window(pixels, axes((pixels.shape[1], pixels.shape[0]), preprocessing), preprocessing.filter)


def check(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Pixels and tensor are Pillow's, or both refuse the image."""
    pixels = pillow.hwc(image)
    try:
        expected = pillow.fit(image, preprocessing)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            fit(pixels, preprocessing)
        return
    np.testing.assert_array_equal(fit(pixels, preprocessing), expected)
    np.testing.assert_array_equal(cpu.preprocess(pixels, preprocessing), expected.transpose(2, 0, 1))


@settings(deadline=None, max_examples=60)
@given(cases(largest=(700, 700)))
def test_any_size_becomes_any_other_as_by_pillow(case: Case) -> None:
    check(case.image(), case.preprocessing)


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(cases())
def test_any_size_up_to_a_large_one_becomes_any_other_as_by_pillow(case: Case) -> None:
    check(case.image(), case.preprocessing)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Axis, Axis]:
    axes = []
    for _ in range(2):
        have = draw(lengths(300))
        resized = draw(reachable(have, 400))
        start = draw(st.integers(0, resized - 1))
        axes.append(Axis(have, resized, start, draw(st.integers(1, resized - start))))
    return axes[0], axes[1]


@settings(deadline=None, max_examples=100)
@given(windows(), st.sampled_from([1, 3]), st.sampled_from(FILTERS), st.integers(0, 2**20))
def test_any_window_is_cut_from_what_pillow_resizes(
    both: tuple[Axis, Axis], channels: int, filter_name: str, seed: int
) -> None:
    across, down = both
    image = noise(np.random.default_rng(seed), across.have, down.have, channels)
    whole = pillow.hwc(pillow.resize(image, (across.resized, down.resized), filter_name))
    expected = whole[down.start : down.start + down.outputs, across.start : across.start + across.outputs]
    np.testing.assert_array_equal(cpu.window(pillow.hwc(image), both, filter_name), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "target", "crop", "filter_name"), EXTREME)
def test_extreme_ratios_are_pillows(
    channels: int, size: tuple[int, int], target: tuple[int, int], crop: str, filter_name: str
) -> None:
    check(noise(np.random.default_rng(1), *size, channels), plain(channels, target[1], target[0], crop, filter_name))


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.slow)], ids=["tenth", "all"])
def test_photographs_are_pillows(part: int, channels: int, filter_name: str) -> None:
    for path in all_photos()[::part]:
        pixels = read(path, channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        check(image, plain(channels, 224, 224, "center", filter_name))


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_are_pillows(channels: int, crop: str, filter_name: str) -> None:
    for path in odd_images():
        pixels = read(path, channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        for height, width in ((32, 32), (224, 224), (75, 130)):
            check(image, plain(channels, height, width, crop, filter_name))


@pytest.mark.parametrize(
    "preprocessing",
    [
        *(preprocessing_of("rgb", "bilinear", "none", "40x24", mode) for mode in COLOR),
        *(preprocessing_of("gray", "bicubic", "none", "40x24", mode) for mode in GRAY),
    ],
)
def test_normalized_values_are_numpys_bit_for_bit(preprocessing: Preprocessing) -> None:
    image = noise(np.random.default_rng(0), 24, 40, preprocessing.channels)
    batch = np.full((3, *preprocessing.input_shape), np.nan, np.float32)
    returned = cpu.preprocess(pillow.hwc(image), preprocessing, batch[1])
    np.testing.assert_array_equal(batch[1].view(np.uint32), preprocess(image, preprocessing).view(np.uint32))
    assert np.shares_memory(returned, batch)
    assert np.isnan(batch[[0, 2]]).all()


def test_threads_do_not_disturb_each_other() -> None:
    preprocessing = plain(3, 64, 48, "center", "bicubic")
    images = [noise(np.random.default_rng(seed), 90 + seed, 140 - seed, 3) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: fit(pillow.hwc(image), preprocessing), images))
    for pixels, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(pixels, pillow.fit(image, preprocessing))


def test_what_the_library_would_misread_never_reaches_it() -> None:
    both = Axis(20, 10, 0, 10), Axis(30, 10, 0, 10)
    pixels = np.zeros((30, 20, 3), np.uint8)
    for wrong in (pixels[:, :10], pixels[:-1], pixels.astype(np.int16), np.zeros((20, 30, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            cpu.window(wrong, both, "bilinear")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on memory that holds")
def test_too_little_memory_is_reported(library: ctypes.CDLL) -> None:
    import resource

    def outputs(count: int) -> int:
        axes = (ctypes.c_int * 8)(1, count, 0, count, 1, 1, 0, 1)
        pixel, out = np.zeros((1, 1, 3), np.uint8), np.empty((1, 64, 3), np.uint8)
        return int(
            library.trt_cls_fit(ctypes.c_void_p(pixel.ctypes.data), 3, axes, 0, ctypes.c_void_p(out.ctypes.data))
        )

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    try:
        assert outputs(2**28) == 1, "its table alone takes a gigabyte"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert outputs(64) == 0
    with pytest.raises(MemoryError, match="not enough memory to resize an image"):
        cpu._check(1)


@pytest.mark.parametrize("filter_name", FILTERS)
def test_without_the_library_pillow_gives_the_same(monkeypatch: pytest.MonkeyPatch, filter_name: str) -> None:
    preprocessing = preprocessing_of("rgb", filter_name, "center", "48x40", "torch")
    pixels = pillow.hwc(noise(np.random.default_rng(3), 120, 90, 3))
    by_library = fit(pixels, preprocessing), cpu.preprocess(pixels, preprocessing)
    assert cpu.executor() == "native"
    monkeypatch.setattr(cpu, "shared_library", lambda: None)
    assert cpu.executor() == "pillow"
    np.testing.assert_array_equal(fit(pixels, preprocessing), by_library[0])
    np.testing.assert_array_equal(cpu.preprocess(pixels, preprocessing), by_library[1])


def test_a_library_that_does_not_load_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    assert cpu.shared_library.__wrapped__() is None
    cpu.compiled_path().write_bytes(b"of another machine")
    assert cpu.shared_library.__wrapped__() is None


def test_the_switch_leaves_all_to_pillow() -> None:
    code = "from trt_cls.preprocessing import cpu, images; print(cpu.executor(), images.simplejpeg())"
    environment = os.environ | {cpu.SWITCH: "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pillow", "None"]


@pytest.mark.slow
def test_nothing_outside_the_arrays_is_touched() -> None:
    """Sizes and windows once more, in a process with AddressSanitizer."""
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(asan.stdout.strip()).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    environment = {
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "TRT_CLS_KERNEL_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover -g",
    }
    chosen = "any_size_becomes or any_window or threads"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "3 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_the_package_is_built_with_and_without_a_compiler(tmp_path: Path, compiler: bool) -> None:
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "trt_cls", "kernels"]
    subprocess.run(["tar", "-cf", tmp_path / "tree.tar", "--exclude=_host*", *names], cwd=ROOT, check=True)
    tree.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "tree.tar"], cwd=tree, check=True)
    environment = {} if compiler else {"CC": "/bin/false", "CXX": "/bin/false"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert ("trt_cls/preprocessing/_host.so" in names) == compiler
    assert "trt_cls/preprocessing/cpu.py" in names


def test_what_the_library_reads_lives_as_long_as_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that come first together each make the values of the shades, and the cache keeps those of one."""
    made: list[weakref.ref[np.ndarray]] = []

    class Values(np.ndarray):
        pass

    def values(preprocessing: Preprocessing) -> np.ndarray:
        array = np.zeros((3, 256), np.float32).view(Values)
        made.append(weakref.ref(array))
        return array

    class Library:
        alive = False

        def trt_cls_preprocess(self, *arguments: object) -> int:
            self.alive = made[0]() is not None
            return 0

    monkeypatch.setattr(cpu, "normalized_bytes", values)
    library, described = Library(), preprocessing_of("rgb", "bilinear", "center", "32x32")
    both = axes((40, 50), described)
    cpu.preprocess_natively(
        library, np.zeros((50, 40, 3), np.uint8), both, described, np.empty((3, 32, 32), np.float32)
    )
    assert library.alive


PIXELS = np.zeros((40, 30, 3), np.uint8)
BOTH = Axis(30, 16, 0, 16), Axis(40, 16, 0, 16)


@pytest.mark.parametrize(
    ("pixels", "both"),
    [
        (PIXELS.astype(np.float32), BOTH),
        (PIXELS[:, ::-1], BOTH),
        (np.asfortranarray(PIXELS), BOTH),
        (PIXELS[..., 0], BOTH),
        (np.zeros((40, 30, 2), np.uint8), BOTH),
        (np.zeros((40, 30, 4), np.uint8), BOTH),
        (np.zeros((0, 30, 3), np.uint8), (BOTH[0], Axis(0, 16, 0, 16))),
        (PIXELS, (Axis(31, 16, 0, 16), BOTH[1])),
        (PIXELS, (Axis(30, 16, 1, 16), BOTH[1])),
        (PIXELS, (Axis(30, 16, -1, 16), BOTH[1])),
        (PIXELS, (Axis(30, 16, 0, 0), BOTH[1])),
        (PIXELS, (Axis(30, 2**30, 0, 2**30), BOTH[1])),
    ],
)
def test_what_does_not_fit_the_pixels_never_reaches_the_library(
    pixels: np.ndarray, both: tuple[Axis, Axis], library: ctypes.CDLL
) -> None:
    with pytest.raises(ValueError, match="expected"):
        cpu.resample_natively(library, pixels, both, "bilinear")


@pytest.mark.parametrize("out", [np.zeros((3, 16, 16), np.float64), np.zeros((1, 16, 16), np.float32)])
def test_an_output_of_another_size_never_reaches_the_library(out: np.ndarray, library: ctypes.CDLL) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        cpu.preprocess_natively(library, PIXELS, BOTH, plain(3, 16, 16, "none", "bilinear"), out)


def test_a_side_beyond_32_bits_of_bytes_is_resized_by_pillow() -> None:
    wide = np.zeros((1, cpu.LONGEST + 1, 1), np.uint8)
    assert cpu.native_for(axes((wide.shape[1], 1), plain(1, 4, 4, "none", "bilinear"))) is None
    assert fit(wide, plain(1, 4, 4, "none", "bilinear")).shape == (4, 4, 1)


@pytest.mark.slow
def test_random_pairs_of_description_and_image_never_reach_beyond_their_memory() -> None:
    from support.asan_pairs import run

    done = run(300, 3)
    assert done.returncode == 0, done.stderr
