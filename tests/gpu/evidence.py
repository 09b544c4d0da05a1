"""All that only a GPU can show, in one command: tests, sanitizer, contexts, trainings that stop and go on, speed.

    python tests/gpu/evidence.py OUT [--images DIR]

Writes OUT/summary.csv (a row per step), OUT/STEP.log and the benchmarks' CSVs. Takes minutes on an H100 and
16 cores; a step that hangs is ended at its limit. Correctness runs in lanes side by side, speed alone after them. Where
TensorRT is not installed, its names over a CUDA kernel stand in for it: engines, graphs and lanes then run for real.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTERRUPTED = 130
TESTS = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=3"]
SMALL = [sys.executable, str(HERE / "small_batches.py")]
COUNTERS = ",".join(
    f"smsp__{name}.sum"
    for name in ("inst_executed", "sass_inst_executed_op_global_ld", "sass_inst_executed_op_shared_ld")
)


@dataclass(frozen=True)
class Step:
    """A command, and how it must end."""

    name: str
    command: Sequence[str]
    limit: int = 150
    """Seconds."""
    interrupt_after: float | None = None
    """Seconds until Ctrl-C, which it must answer with INTERRUPTED."""
    environment: Mapping[str, str] = field(default_factory=dict)


def lanes(out: Path, images: Path, dataset: Path) -> list[list[Step]]:
    """The steps of each lane, in order."""
    stand_in = {} if find_spec("tensorrt") else {"PYTHONPATH": _path(HERE / "tensorrt_over_cuda")}
    tests, of_engines = str(HERE / "test_on_gpu.py"), "engine or pipeline or graphs"
    exactness = [
        Step("small_batches", SMALL),
        Step("kernel_tests", [*TESTS, tests, "-k", f"not ({of_engines})"]),
        Step("engine_tests", [*TESTS, tests, "-k", of_engines], environment=stand_in),
    ]
    sanitizer = [
        Step(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *SMALL])
        for tool in ("memcheck", "racecheck")
    ]
    trainings = [str(HERE / name) for name in ("test_training_on_gpu.py", "test_cuda_graphs.py")]
    training = [Step("training_tests", [*TESTS, *trainings], limit=480)]
    return [exactness, sanitizer, training, commands(out, dataset)]


def commands(out: Path, dataset: Path) -> list[Step]:
    """Trainings from the command line in each precision, twice to the same bits, stopped and gone on with."""
    spec = str(ROOT / "specs" / "cifar10_resnet18.txt")
    folders = [("train_config.train_dataset_path", "train"), ("train_config.val_dataset_path", "test")]
    folders.append(("eval_config.eval_dataset_path", "test"))
    settings = [word for name, part in folders for word in ("--set", f"{name}={dataset / part}")]
    run = [sys.executable, "-m", "trt_cls"]
    train = [*run, "train", "-e", spec, *settings, "--device", "cuda"]
    short = ["--set", "train_config.n_epochs=2"]
    kinds = {"auto": [], "auto2": [], "fp32": ["--precision", "fp32"], "fp16": ["--precision", "fp16"]}
    kinds |= {"graphs": ["--cuda-graphs"], "compiled": ["--compile"]}
    steps = [Step(f"train_{name}", [*train, *short, "-r", str(out / name), *more], 90) for name, more in kinds.items()]
    weights = [str(out / name / "weights" / "resnet_002.safetensors") for name in ("auto", "auto2", "graphs")]
    endless = [*train, "-r", str(out / "stopped"), "--set", "train_config.n_epochs=10000"]
    return [
        *steps,
        Step("repeatable", ["cmp", *weights[:2]]),
        Step("graphs_repeatable", ["cmp", weights[0], weights[2]]),
        Step("stop", endless, limit=90, interrupt_after=20),
        Step("resume", [*endless, "--resume"], limit=90, interrupt_after=15),
        Step("evaluate", [*run, "evaluate", "-e", spec, *settings, "-m", weights[0], "-r", str(out / "evaluation")]),
    ]


def alone(images: Path) -> list[Step]:
    """What measures speed, or takes all of the GPU's memory; one after the other."""
    bench = ROOT / "benchmarks"
    profile = ["--clock-control", "none", "-k", "regex:preprocess_color", "-s", "2", "-c", "1"]
    launches = [sys.executable, "-c", "import gpu_preprocessing; gpu_preprocessing.measure_alone()"]
    return [
        Step("contexts", [sys.executable, str(HERE / "contexts.py")]),
        Step("gpu_preprocessing", [sys.executable, str(bench / "gpu_preprocessing.py")], limit=90),
        Step("gpu_training_loader", [sys.executable, str(bench / "gpu_training_loader.py"), "--images", str(images)]),
        Step(
            "instructions",
            ["ncu", *profile, "--metrics", COUNTERS, *launches],
            limit=60,
            environment={"PYTHONPATH": _path(bench)},
        ),
    ]


def carried_out(step: Step, out: Path) -> dict[str, object]:
    """Runs it, its output going to a file; a row of the summary."""
    start, log = time.perf_counter(), out / f"{step.name}.log"
    environment = os.environ | {"PYTHONPATH": _path(), "PYTHONUNBUFFERED": "1"} | step.environment
    with log.open("w") as output:
        running = subprocess.Popen(
            step.command, stdout=output, stderr=output, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            if step.interrupt_after is not None:
                with_patience(running, step.interrupt_after)
                running.send_signal(signal.SIGINT)
            status: int | str = running.wait(step.limit)
        except subprocess.TimeoutExpired:
            status = "too long"
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    wanted = 0 if step.interrupt_after is None else INTERRUPTED
    written = [line for line in log.read_text(errors="replace").splitlines() if line.strip(" -")]  # no rules of tables
    last = " ".join(written[-1].split()) if written else ""
    row = {"step": step.name, "ok": status == wanted, "status": status, "seconds": f"{time.perf_counter() - start:.0f}"}
    print(*row.values(), last[:160], flush=True)
    return row | {"last_line": last}


def with_patience(running: subprocess.Popen[bytes], seconds: float) -> None:
    """Returns after `seconds`, or when it has ended."""
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def said(module: str, call: str) -> str:
    """What a function of the tests or the benchmarks returns, as text."""
    code = f"import json; from {module} import *; print({call})"
    environment = os.environ | {"PYTHONPATH": _path(ROOT / "benchmarks")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _path(*first: Path) -> str:
    return os.pathsep.join(map(str, (*first, ROOT, ROOT / "tests")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, help="photographs, one sub-folder per class; else those of the tests")
    parser.add_argument("--dataset", type=Path, help="a folder with train and test; default: that of the tests")
    given = parser.parse_args()
    out = given.out.resolve()
    images = given.images or Path(said("support.shared_data", "photos()"))
    dataset = given.dataset or Path(said("support.shared_data", "cifar10()"))
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        sides = pool.map(
            lambda steps: [carried_out(step, out) for step in steps], lanes(out, images.resolve(), dataset.resolve())
        )
        rows = [row for side in sides for row in side]
    rows += [carried_out(step, out) for step in alone(images.resolve())]
    machine = json.loads(said("_results", 'json.dumps(about(("torch", "pycuda", "tensorrt", "onnxruntime")))'))
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | machine for row in rows)
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
