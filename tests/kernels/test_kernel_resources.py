from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernel_resources.py"
KERNELS = {f"preprocess_{color}_{dtype}" for color in ("color", "gray") for dtype in ("float16", "float32")}
KERNELS |= {"augment_color_float32", "augment_gray_float32"}


@pytest.fixture(scope="module")
def resources() -> ModuleType:
    specification = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def committed(resources: ModuleType) -> list[dict[str, str]]:
    with resources.RESULTS.open() as file:
        return list(csv.DictReader(file))


def needs_nvcc() -> None:
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not on PATH")


def test_the_committed_table_has_every_kernel_on_every_architecture_without_spills(resources: ModuleType) -> None:
    rows = committed(resources)
    expected = {(f"sm_{arch}", kernel) for arch in resources.ARCHITECTURES for kernel in KERNELS}
    assert {(row["arch"], row["kernel"]) for row in rows} == expected
    assert {row["spill_bytes"] for row in rows} == {"0"}


def test_nothing_is_spilled_to_local_memory(resources: ModuleType) -> None:
    needs_nvcc()
    rows = [dict(zip(resources.COLUMNS, row, strict=True)) for row in resources.measure([90])]
    assert {(row["arch"], row["kernel"]) for row in rows} == {("sm_90", k) for k in KERNELS}
    assert {row["spill_bytes"] for row in rows} == {"0"}
    # A block has 256 threads: with 64 registers each, 4 blocks share the 65,536 of a multiprocessor.
    assert max(int(row["registers"]) for row in rows) <= 64
    # The shared memory of a chunk: 16 rows of 32 pixels, 3 channels.
    assert max(int(row["shared_bytes"]) for row in rows) <= 1536 + 1024  # from sm_90 on the system takes 1 KB


@pytest.mark.slow
def test_the_committed_table_is_what_nvcc_says(resources: ModuleType) -> None:
    needs_nvcc()
    rows = [dict(zip(resources.COLUMNS, row, strict=True)) for row in resources.measure()]
    assert {row["spill_bytes"] for row in rows} == {"0"}
    if rows[0]["nvcc"] != committed(resources)[0]["nvcc"]:
        pytest.skip(f"the table was made by nvcc {committed(resources)[0]['nvcc']}, here is {rows[0]['nvcc']}")
    assert rows == committed(resources)
