"""Registers, shared memory and spills of the kernels on every architecture, as ptxas reports them.

Needs nvcc and no GPU; writes results/kernel_resources.csv. The images of `make bench` are not looked at.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = ROOT / "kernels" / "preprocess.cu"
RESULTS = ROOT / "benchmarks" / "results" / "kernel_resources.csv"

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
"""Turing to Blackwell; 87 is Orin, 110 Thor."""
COLUMNS = ["arch", "kernel", "registers", "shared_bytes", "spill_bytes", "nvcc"]

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def measure(architectures: Sequence[int] = ARCHITECTURES) -> list[list[str]]:
    """A row of COLUMNS for each architecture and kernel."""
    version = _said("nvcc", "--version").partition("release ")[2].partition(",")[0]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    with tempfile.TemporaryDirectory() as folder:
        said = _said("nvcc", "-Xptxas", "-v", *targets, "-fatbin", "-o", f"{folder}/kernels.fatbin", str(KERNEL))
    rows = [
        [entry["arch"], entry["kernel"], entry["registers"], entry["shared"] or "0", _spilled(entry), version]
        for entry in ENTRY.finditer(said)
    ]
    return sorted(rows, key=lambda row: (int(row[0].removeprefix("sm_")), row[1]))


def _spilled(entry: re.Match[str]) -> str:
    return str(int(entry["stores"]) + int(entry["loads"]))


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


if __name__ == "__main__":
    if not shutil.which("nvcc"):
        print("kernel_resources: skipped, nvcc is not on PATH; it comes with the CUDA toolkit")
        sys.exit()
    with RESULTS.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *measure()])
    print(RESULTS.read_text(), end="")
