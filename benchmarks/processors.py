"""Whether tests and INT8's choices depend on the processor: results/processors.csv, a row for each instruction set.

torch and oneDNN take a limit from the environment. ONNX Runtime takes none: it meets another processor under
qemu-user (`qemu-x86_64` on PATH) alone, which is some fifty times slower and runs a small set without torch.
A row that this processor can't run says `not run`.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from _results import RESULTS, about, write

TESTS = (
    "tests/models/test_int8_ranges.py",
    "tests/models/test_int8_layers.py",
    "tests/models/test_network.py",
    "tests/preprocessing/test_pillow.py",
    "tests/export/test_calibration.py",
    "tests/export/test_parity.py",
    "tests/export/test_sensitivity.py",
    "tests/export/test_qdq.py",
    "tests/export/test_optimized.py",
    "tests/training/test_extensions.py",
    "tests/pruning/test_channel_graph.py",
    "tests/evaluation/test_metrics.py",
)
EMULATED_TESTS = ("tests/models/test_int8_ranges.py", "tests/evaluation/test_metrics.py")
KEPT = 3
"""The costliest layers, which --int8-auto keeps in float16 first."""


@dataclass(frozen=True)
class Setting:
    """One kind of processor."""

    aten: str
    onednn: str
    threads: int
    needs: str = ""
    """The flag of /proc/cpuinfo without which it can't be run."""
    emulated: str = ""

    def environment(self) -> dict[str, str]:
        """The limits as environment variables of torch and oneDNN."""
        limits = {"ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}
        return {**os.environ, **limits, "OMP_NUM_THREADS": str(self.threads)}


SETTINGS = (
    *(Setting("default", "SSE41", threads) for threads in (1, 2)),
    *(Setting("avx2", "AVX2", threads, "avx2") for threads in (1, 2)),
    *(Setting("avx512", "AVX512_CORE_VNNI", threads, "avx512_vnni") for threads in (1, 2)),
    Setting("default", "SSE41", 1, emulated="Haswell"),
)


def main() -> None:
    """Writes the rows of this processor; those of others stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="*", default=TESTS, help="test files to run on each setting")
    parser.add_argument("--choose", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.choose:
        print(choice(given.choose))
        return
    with TemporaryDirectory() as folder:
        prepare(Path(folder))
        rows = [row(setting, Path(folder), given.tests) for setting in SETTINGS]
    with (RESULTS / "processors.csv").open(newline="") as file:
        others = [row for row in csv.DictReader(file) if row["processor"] != processor()]
    write("processors", [*others, *rows])


def prepare(folder: Path) -> None:
    """A network and images, the same for all settings."""
    import torch

    from trt_cls.contract import Contract
    from trt_cls.export.torch_to_onnx import onnx_from_module
    from trt_cls.models import build
    from trt_cls.preprocessing.description import default_preprocessing_of_tao
    from trt_cls.spec.experiment import ModelConfig

    torch.manual_seed(0)
    config = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
    images = torch.randn(16, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3) * 50
    network = build(config, 5)
    with torch.no_grad():
        for _ in range(20):  # statistics of the images
            network.train()(images)
    contract = Contract(config, default_preprocessing_of_tao(config.input_shape), tuple("abcde"))
    onnx.save(onnx_from_module(network, contract).proto, folder / "network.onnx")
    np.save(folder / "images.npy", images.numpy())


def choice(folder: Path) -> str:
    """The calibration rule, and the layers that are kept first."""
    from trt_cls.export.int8.layers import quantizable
    from trt_cls.export.int8.qdq import measure_magnitudes
    from trt_cls.export.int8.sensitivity import rank, signal_to_noise
    from trt_cls.models.int8_ranges import METHODS, best_of, threshold

    model, images = onnx.load(folder / "network.onnx"), np.load(folder / "images.npy")
    layers = quantizable(model)
    found = measure_magnitudes(
        model, list(dict.fromkeys(name for names in layers.values() for name in names)), [images]
    )
    ranges = {method: {name: threshold(part, method) for name, part in found.items()} for method in METHODS}
    best, comparison = best_of(signal_to_noise(model, ranges, layers, images))
    kept = [layer.weights for layer in rank(model, ranges[best], layers, images)[:KEPT]]
    return f"{comparison.replace('; signal/noise of the logits', '')}|{' '.join(kept)}"


def row(setting: Setting, folder: Path, tests: list[str]) -> dict[str, object]:
    """The results of one setting."""
    about_it = {
        "aten_cpu_capability": setting.aten,
        "onednn_max_cpu_isa": setting.onednn,
        "emulated": setting.emulated or "no",
        "threads": setting.threads,
    }
    if setting.needs not in Path("/proc/cpuinfo").read_text() or (setting.emulated and not shutil.which("qemu-x86_64")):
        figures = dict.fromkeys(("tests", "failures", "int8_rule", "int8_kept_first"), "not run")
    else:
        emulator = ["qemu-x86_64", "-cpu", setting.emulated] if setting.emulated else []
        python, environment = [*emulator, sys.executable], setting.environment()
        report = folder / "report.xml"
        report.unlink(missing_ok=True)
        asked = EMULATED_TESTS if setting.emulated else tests
        command = ["-m", "pytest", "-q", "-m", "not slow and not gpu", f"--junitxml={report}", *asked]
        subprocess.run([*python, *command], env=environment, stdout=sys.stderr, check=False)
        (suite,) = ElementTree.parse(report).iter("testsuite")
        failures = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        command = [__file__, "--choose", str(folder)]
        chosen = subprocess.run([*python, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rule, kept = chosen.stdout.strip().split("|")
        ran = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
        figures = {"tests": ran, "failures": failures, "int8_rule": rule, "int8_kept_first": kept}
    return {**about_it, **figures, "processor": processor(), **about(("torch", "onnxruntime", "numpy"))}


def processor() -> str:
    """The model that the kernel names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
