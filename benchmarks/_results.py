"""Shared by the scripts: descriptions of the machine and the network, and the CSV files in results/."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trt_cls.errors import TrtClsError
from trt_cls.gpu import visible_gpu
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import ModelConfig

RESULTS = Path(__file__).resolve().parent / "results"


def about(packages: Sequence[str]) -> dict[str, str]:
    """The columns that describe the origin of a figure."""
    gpu = visible_gpu()
    machine = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU"
    found = [f"{name} {number}" for name in packages if (number := _version(name))]
    return {"machine": f"{machine}, {os.cpu_count()} cores", "versions": ", ".join(found)}


def network_name(model: ModelConfig) -> str:
    """Such as "resnet18"."""
    return model.arch + (str(model.n_layers) if ARCHITECTURES[model.arch].depths else "")


def write(name: str, rows: Sequence[Mapping[str, object]], *, shown: bool = True) -> None:
    """Writes results/NAME.csv and prints it if it shall be `shown`."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if shown:
        print((RESULTS / f"{name}.csv").read_text(), end="")


def run(name: str, measure: Callable[[], Sequence[Mapping[str, object]]]) -> int:
    """Writes the results of `measure`; if it is not possible here, one line and exit status 1."""
    if visible_gpu() is None:
        print(f"{name}: not run, no NVIDIA GPU with its driver is visible here; run it on a machine that has one")
        return 1
    try:
        write(name, measure())
    except TrtClsError as error:
        print(f"{name}: not run, {error}", file=sys.stderr)
        return 1
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
