"""Runs the GPU's code through the real pycuda over a driver played by the CPU; the last line counts what was seen.

    python tests/driver/run.py [lazy eager random …]

The tests of tests/driver and of tests/gpu, the benchmarks and doctor, in three orders of streams; again with frees that
do not wait for the device; and with each of the first 40 allocations failing. Ends with 0 where all tests pass, no copy
was pageable, nothing was left on the device and nothing was done that a driver forbids.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import build

HERE = Path(__file__).resolve().parent
TESTS, ROOT = HERE.parent, HERE.parents[1]
PATIENCE = 300
"""Seconds of a test, a hundred times what the longest takes; then the stacks are printed, and the run has failed."""
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=3", "-o", f"faulthandler_timeout={PATIENCE}"]
PYTEST += ["-o", "faulthandler_exit_on_timeout=true"]
KERNELS = """
import sys
from pathlib import Path
from support.cuda_on_cpu import FLAGS, HERE, KERNEL, WRAPPER, compiled
network, network_on_cpu = map(Path, sys.argv[1:])
for source, kernel in ((WRAPPER, KERNEL), (network_on_cpu, network)):
    # Each library keeps its own threads: they have blocks of another shape.
    print(compiled(source, [*FLAGS, "-fno-gnu-unique"], (kernel, HERE / "cuda_on_cpu.h"))._name)
"""
"""Prints the paths of the kernels' libraries."""
EACH_ALLOCATION = "an_allocation_that_fails"
ZERO = ("pageable", "leaks", "violations")


@dataclass(frozen=True)
class Way:
    """How the driver runs what is queued."""

    order: str
    frees_wait: bool = True

    def __str__(self) -> str:
        return self.order + ("" if self.frees_wait else ", frees do not wait")

    @property
    def environment(self) -> dict[str, str]:
        return {"DRIVER_ORDER": self.order, "DRIVER_FREES_WAIT": "yes" if self.frees_wait else "no"}


WAYS = [Way("lazy"), Way("eager"), Way("random"), Way("lazy", frees_wait=False), Way("random", frees_wait=False)]


def environment(report: Path, root: Path = ROOT) -> dict[str, str]:
    """For processes over the driver, which write their counts to `report`; `root` is the checkout that they run.

    Raises:
        build.Missing: the driver can't be built here.
    """
    driver, site = build.build()
    network = TESTS / "gpu" / "tensorrt_over_cuda" / "tensorrt" / "network.cu"
    path = os.pathsep.join(map(str, (ROOT, TESTS)))
    kernels = subprocess.run(
        [sys.executable, "-c", KERNELS, network, HERE / "network_on_cpu.cpp"],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.split()  # fmt: skip
    tests = root / "tests"
    path = [root, tests, tests / "gpu" / "tensorrt_over_cuda", tests / "driver" / "names", site]
    return os.environ | {
        "LD_LIBRARY_PATH": str(driver),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "XDG_CACHE_HOME": str(build.cache() / "kernels"),
        "DRIVER_KERNELS": ":".join(kernels),
        "DRIVER_REPORT": str(report),
    }


def commands(way: Way) -> list[list[str]]:
    """Pixels and figures are the same however memory is freed, and an allocation that fails in whatever order."""
    if not way.frees_wait:
        rest = [] if way.order == "lazy" else ["-k", f"not {EACH_ALLOCATION}"]
        return [[*PYTEST, str(HERE), "--ignore", str(HERE / "test_benchmarks.py"), *rest]]
    small_batches = str(TESTS / "gpu" / "small_batches.py")
    on_gpu = str(TESTS / "gpu" / "test_on_gpu.py")
    return [[*PYTEST, str(HERE), on_gpu, "-k", f"not {EACH_ALLOCATION} and not odd_sizes"], [small_batches]]


def carried_out(
    command: Sequence[str],
    environment: dict[str, str],
    report: Path,
    root: Path = ROOT,
    output: IO[str] | None = None,
    limit: float | None = None,
) -> Counter[str]:
    """Runs Python with `command`; its counts, and under `failed` whether it ended with an error, or not in time."""
    report.unlink(missing_ok=True)
    whole = [sys.executable, *command]
    found: Counter[str] = Counter()
    begun = subprocess.Popen(whole, env=environment, cwd=root, stdout=output, stderr=output and subprocess.STDOUT)
    try:
        status = begun.wait(limit)
    except subprocess.TimeoutExpired:
        begun.kill()
        status = begun.wait()
        found["hangs"] = 1
    found["failed"] = int(status != 0)
    lines = report.read_text().splitlines() if report.exists() else []
    for line in lines:
        found.update(json.loads(line))
    found["failed"] += not lines  # it ended before the driver could count
    return found


def main() -> int:
    wanted = sys.argv[1:] or ["lazy", "eager", "random"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        try:
            settings = environment(report)
        except build.Missing as missing:
            print(f"test-driver: skipped, {missing}")
            return 0
        total: Counter[str] = Counter()
        for way in WAYS:
            for command in commands(way) if way.order in wanted else []:
                print(f"== {way}: {' '.join(command[:2])}", flush=True)
                total += carried_out(command, settings | way.environment, report)
    return summed_up(total)


def summed_up(total: Counter[str]) -> int:
    names = {
        "launches": "launches", "captured": "graphs captured", "graph_launches": "graphs launched", "copies": "copies",
        "pageable": "pageable copies", "leaks": "leaks", "violations": "violations",
    }  # fmt: skip
    failed = bool(total["failed"] or any(total[name] for name in ZERO) or not total["launches"])
    print("test-driver:", ", ".join(f"{text} {total[name]}" for name, text in names.items()), "- FAILED" * failed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
