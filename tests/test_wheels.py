"""The wheels that go to an index: what they contain, and that the C++ library of each gives Pillow's pixels."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_cls.preprocessing import pillow
from trt_cls.preprocessing.pillow import FILTERS, Axis
from trt_cls.version import __version__

ROOT = Path(__file__).resolve().parents[1]
SYSROOT = Path("/usr/aarch64-linux-gnu")
"""That of Debian's libc6-arm64-cross."""


def tool(name: str) -> str:
    if not find_spec(name):
        pytest.skip(f"{name} is not installed: pip install {name}")
    return name


def compile_for(processor: str, source: Path | str, output: Path, *flags: str) -> None:
    command = [sys.executable, "-m", tool("ziglang"), "c++", "-target", f"{processor}-linux-gnu.2.28", *flags]
    subprocess.run([*command, str(source), "-o", str(output)], cwd=ROOT, check=True, timeout=300)


def release(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "release/wheels.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_wheels_and_sdist_are_complete(tmp_path: Path) -> None:
    for name in ("ziglang", "auditwheel", "twine", "uv"):
        tool(name)
    done = release("--output", str(tmp_path))
    if any(sign in done.stderr for sign in ("Failed to fetch", "error sending request", "dns error")):
        pytest.skip("the package index is not reachable")
    assert done.returncode == 0, done.stdout + done.stderr
    contents = {}
    for processor in ("x86_64", "aarch64"):
        wheel = tmp_path / f"trt_cls-{__version__}-py3-none-manylinux_2_28_{processor}.whl"
        contents[processor] = set(zipfile.ZipFile(wheel).namelist())
        policy = re.search(rf'platform tag:\s+"manylinux_2_(\d+)_{processor}"', done.stdout)
        assert policy, done.stdout
        assert int(policy[1]) <= 28
    assert contents["x86_64"] == contents["aarch64"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    missing = {name for name in tracked if name.startswith("trt_cls/")} - contents["x86_64"]
    assert missing == set()
    assert "trt_cls/preprocessing/_host.so" in contents["x86_64"]
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if not name.startswith(".ci/")} - names == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_the_library_of_each_processor_gives_the_pixels_of_pillow(processor: str, tmp_path: Path) -> None:
    emulator = []
    if processor == "aarch64":
        if not (program := shutil.which("qemu-aarch64")) or not SYSROOT.exists():
            pytest.skip("qemu-aarch64 or its C library is not installed: apt-get install qemu-user libc6-arm64-cross")
        emulator = [program, "-L", str(SYSROOT)]
    sys.path.insert(0, str(ROOT / "release"))
    try:
        import wheels
    finally:
        sys.path.remove(str(ROOT / "release"))
    tool("ziglang")
    wheels.compile_library(processor, tmp_path / "_host.so")
    compile_for(processor, "tests/support/host_driver.cpp", tmp_path / "driver", "-O1", "-nostdlib++", "-ldl")
    given, expected = cases(np.random.default_rng(5), 200)
    command = [*emulator, str(tmp_path / "driver"), str(tmp_path / "_host.so")]
    done = subprocess.run(command, input=given, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


def cases(random: np.random.Generator, count: int) -> tuple[bytes, bytes]:
    """Images and windows of all kinds as the driver reads them, and the tensors that Pillow and numpy make of them."""
    given, expected = [], []
    for number in range(count):
        channels, filter_name, reverse = (1, 3)[number // 4 % 2], list(FILTERS)[number % 2], number // 2 % 2
        across, down = axis(random), axis(random)
        pixels = random.integers(0, 256, (down.have, across.have, channels), dtype=np.uint8)
        values = random.standard_normal((channels, 256)).astype(np.float32)
        head = np.array([channels, filter_name == "bicubic", reverse, 0, *across, *down], np.int32)
        given += [head.tobytes(), pixels.tobytes(), values.tobytes()]
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        planes = pillow.cropped(image, (across, down), filter_name).transpose(2, 0, 1)[:: -1 if reverse else 1]
        # The table of values is that of the network's channels, in their order.
        expected += [np.stack([table[plane] for table, plane in zip(values, planes, strict=True)]).tobytes()]
    return b"".join(given), b"".join(expected)


def axis(random: np.random.Generator) -> Axis:
    resized = int(random.integers(1, 160))
    start = int(random.integers(0, resized))
    return Axis(int(random.integers(1, 240)), resized, start, int(random.integers(1, resized - start + 1)))
