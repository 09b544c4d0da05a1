"""Random pairs of description and image through the native executors under AddressSanitizer and UBSan.

    python tests/support/asan_pairs.py COUNT SEED

Exit status 0: no report; pairs that do not fit each other were refused before the call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1"


def run(count: int, seed: int) -> subprocess.CompletedProcess[str]:
    """The pairs in a process of their own, into which the sanitizer is loaded first."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    env = {
        **os.environ,
        "LD_PRELOAD": library.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TRT_CLS_KERNEL_FLAGS": FLAGS,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, str(count), str(seed), "inside"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def sides(rng: np.random.Generator, most: float) -> int:
    return int(most ** rng.random())


def inside(count: int, seed: int) -> None:
    from support import cuda_on_cpu
    from trt_cls.contract import Preprocessing
    from trt_cls.errors import DataError
    from trt_cls.preprocessing import cpu
    from trt_cls.preprocessing.pillow import Pixels, axes

    source = ROOT / "kernels" / "preprocess_host.cpp"
    library = cuda_on_cpu.compiled(source, ["-std=c++17", "-ffp-contract=off"])
    cpu.shared_library = lambda: library  # type: ignore[assignment]
    rng = np.random.default_rng(seed)
    refused = 0

    def fit(pixels: Pixels, how: Preprocessing) -> Pixels:
        return cpu.window(pixels, axes((pixels.shape[1], pixels.shape[0]), how), how.filter)

    for _ in range(count):
        channels = int(rng.choice([1, 3]))
        order = "gray" if channels == 1 else str(rng.choice(["rgb", "bgr"]))
        width, height = sides(rng, 300), sides(rng, 300)
        crop, filter_name = str(rng.choice(["center", "none"])), str(rng.choice(["bilinear", "bicubic"]))
        wanted = Preprocessing(
            channels, height, width, crop, filter_name, order, 255.0, (0.4,) * channels, (0.2,) * channels
        )  # type: ignore[arg-type]
        size = sides(rng, 3000), sides(rng, 400)
        shape = size if rng.random() < 0.5 else size[::-1]
        # one in ten is of another number of channels, or not contiguous
        odd = rng.random() < 0.1
        given = int(rng.integers(0, 6)) if odd else channels
        pixels = rng.integers(0, 256, (*shape, given), np.uint8)
        if odd and rng.random() < 0.3:
            pixels = np.asfortranarray(pixels)
        for execute in (cpu.preprocess, fit, lambda image, how: cuda_on_cpu.preprocess([image], how)):
            try:
                execute(pixels, wanted)
            except (DataError, ValueError):
                refused += 1
    print(f"{count} pairs, seed {seed}: {refused} of {3 * count} calls refused, no report")


if __name__ == "__main__":
    if sys.argv[3:] == ["inside"]:
        inside(int(sys.argv[1]), int(sys.argv[2]))
    else:
        done = run(int(sys.argv[1]), int(sys.argv[2]))
        print(done.stdout, done.stderr[-6000:], sep="", end="")
        sys.exit(done.returncode)
