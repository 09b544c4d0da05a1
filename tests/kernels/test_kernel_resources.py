from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernel_resources.py"
KERNELS = {f"{family}_{color}_float32" for family in ("preprocess", "augment") for color in ("color", "gray")}


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
    # A block has 256 threads: with 48 registers each, 5 blocks share the 65,536 of a multiprocessor. Turing's has room
    # for 4 blocks, whatever they take.
    assert max(int(row["registers"]) for row in rows if row["arch"] == "sm_90") <= 48
    assert max(int(row["registers"]) for row in rows) <= 64
    # A chunk of 67 rows of 32 words, and 3 · 256 values.
    # From sm_90 on the system takes 1 KB.
    assert max(int(row["shared_bytes"]) for row in rows) <= 67 * 128 + 3 * 1024 + 1024


def test_the_counted_loads_of_a_pixel_are_a_third_of_those_of_the_first_kernel(resources: ModuleType) -> None:
    with resources.RESULTS.with_name("kernel_counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    loads = {(row["version"], row["arch"]): float(row["loads_per_pixel"]) for row in rows}
    fewer = {arch: loads["before", arch] / loads["after", arch] for version, arch in loads if version == "after"}
    assert set(fewer) == {f"sm_{arch}" for arch in (75, 80, 87, 89, 90, 100, 120)}
    assert min(fewer.values()) >= 3
    assert {row["spill_bytes"] for row in rows} == {"0"}
    resources_of = {(row["arch"], row["kernel"]): row["registers"] for row in committed(resources)}
    after = [row for row in rows if row["version"] == "after"]
    assert all(row["registers"] == resources_of[row["arch"], row["kernel"]] for row in after), "count the kernel anew"


@pytest.mark.slow
def test_the_committed_table_is_what_nvcc_says(resources: ModuleType) -> None:
    needs_nvcc()
    rows = [dict(zip(resources.COLUMNS, row, strict=True)) for row in resources.measure()]
    assert {row["spill_bytes"] for row in rows} == {"0"}
    if rows[0]["nvcc"] != committed(resources)[0]["nvcc"]:
        pytest.skip(f"the table was made by nvcc {committed(resources)[0]['nvcc']}, here is {rows[0]['nvcc']}")
    assert rows == committed(resources)
