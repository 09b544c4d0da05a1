"""Loads and instructions per output pixel of the preprocessing kernel, counted in its machine code, and its occupancy.

    python benchmarks/kernel_counts.py VERSION=FILE.cu …

Of each version the color kernel is compiled for every architecture and the bodies of its two loops over taps are
counted: the one that resamples source rows, and the one that adds them up down a column. A body's counts are divided by
its multiply-adds and multiplied by those that a pixel takes where 500×375 becomes 224×224, the case of
gpu_preprocessing.py; what stands outside the loops is left out, but for loads of words ahead of the first round: each
row makes them, and some compilers move more of them there than others. A load under a predicate is that of a group's
last word, for a fourth tap: a window here has at most three, and it is not made. Takes nvcc and cuobjdump (pip install
nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm); needs no GPU. Writes results/kernel_counts.csv.

"before" is the kernel as it was with a load per byte, two divisions per value and tiles of 16 rows. In the loops it has
fewer instructions, as a byte that is loaded alone need not be taken out of a word; the profiler, which counts all,
gives 410 instructions a pixel before and 237 after (gpu_preprocessing.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import _results
from kernel_resources import ENTRY, KERNEL

ARCHITECTURES = (75, 80, 87, 89, 90, 100, 120)
NAME = "preprocess_color_float32"
CHANNELS, GROUP, TOGETHER = 3, 4, 2
"""Of the kernel: taps that are loaded together, and rows that are resampled together, where words are loaded."""
THREADS, REGISTERS = 256, 65_536
"""Of a block; of a multiprocessor."""
RESIDENT = {75: 1024, 80: 2048, 87: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
"""Threads of a multiprocessor, from the CUDA Programming Guide."""
SCALE = 375 / 256
"""The short side is resized to 256 before the crop."""
TAPS = 2 * SCALE
"""Of a pixel along an axis, on average, where bilinear reduces; words are loaded for a group of four."""
ROWS = {"bytes": 32 / 16, "words": 52 / 32}
"""Source rows resampled per row of a tile: two chunks of 16 for a tile of 16; some 50 rows for a tile of 32, in steps
of two rows a warp."""


def counted(version: str, source: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/kernel.cubin"
            said = _said("nvcc", "-Xptxas", "-v", f"-arch=sm_{arch}", "-cubin", "-o", cubin, str(source))
            code = _said("cuobjdump", "-sass", "-fun", NAME, cubin)
        entry = next(found for found in ENTRY.finditer(said) if found["kernel"] == NAME)
        registers = int(entry["registers"])
        loads, instructions = per_pixel(code)
        blocks = min(RESIDENT[arch] // THREADS, REGISTERS // (-(-registers // 8) * 8 * THREADS))
        rows.append({
            "version": version, "arch": f"sm_{arch}", "kernel": NAME, "registers": registers,
            "spill_bytes": int(entry["stores"]) + int(entry["loads"]), "shared_bytes": entry["shared"] or 0,
            "occupancy": f"{blocks * THREADS / RESIDENT[arch]:.2f}", "loads_per_pixel": f"{loads:.1f}",
            "instructions_per_pixel": f"{instructions:.0f}",
        })  # fmt: skip
    return rows


def per_pixel(code: str) -> tuple[float, float]:
    """Loads from global memory and instructions of the two loops."""
    found = loops(code)
    across = next(loop for loop in found if _many(loop.body, "LDG") >= 5 and not _many(loop.body, "LDS"))
    down = next(loop for loop in found if _many(loop.body, "LDS") >= GROUP)
    words = not _many(across.body, "LDG.E.U8")
    taps = GROUP if words else TAPS
    multiplied = (
        _many(across.body, "LDG.E.128") * GROUP * CHANNELS * TOGETHER if words else _many(across.body, "LDG.E.U8")
    )
    of_a_column = _many(down.body, "LDS") * (CHANNELS if words else 1)
    times_across = CHANNELS * taps * ROWS["words" if words else "bytes"] / multiplied
    times_down = CHANNELS * taps / of_a_column
    made = _many(across.body, "LDG") + (_many(across.ahead, "LDG") if words else 0)
    loads = made * times_across + _many(down.body, "LDG") * times_down
    return loads, len(across.body) * times_across + len(down.body) * times_down


class Loop(NamedTuple):
    """Operations of an innermost loop, and of the loop around it ahead of it; predicated ones begin with "@"."""

    body: list[str]
    ahead: list[str]


def loops(code: str) -> list[Loop]:
    """A loop is a branch back, and what stands between it and its target."""
    found = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
    back = [
        (int(target[1], 16), at)
        for at, text in found
        if (target := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) and int(target[1], 16) < at
    ]

    def between(begin: int, end: int) -> list[str]:
        return [_operation(text) for at, text in found if begin <= at < end]

    made = []
    for begin, end in back:
        if not any(begin <= other[0] and other[1] <= end for other in back if other != (begin, end)):
            around = max((other[0] for other in back if other[0] < begin and end < other[1]), default=begin)
            made.append(Loop(between(begin, end + 1), between(around, begin)))
    return made


def _operation(text: str) -> str:
    predicate, _, rest = text.partition(" ") if text.startswith("@") else ("", "", text)
    return predicate[:1] + rest.split()[0]


def _many(operations: Sequence[str], name: str) -> int:
    return sum(operation.startswith(name) for operation in operations)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def main(versions: Sequence[str]) -> int:
    named = [version.partition("=")[::2] for version in versions] or [("now", str(KERNEL))]
    _results.write("kernel_counts", [row for version, file in named for row in counted(version, Path(file))])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
