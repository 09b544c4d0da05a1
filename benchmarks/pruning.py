"""Accuracy and latency of pruning: a trained network, pruned by its multiply-adds, then retrained.

Both networks are evaluated on the full eval_config dataset and timed in turn, in ONNX Runtime on the CPU, one image at
a time. results/pruning.csv has a row for each, and one for the pruned network before retraining.
Usage: python benchmarks/pruning.py --model TRAINED -e SPEC -r DIR [--target-flops 0.5] [--epochs 10] [--rate 0.01]
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from _results import network_name

from trt_cls.artefacts.onnx_file import write_onnx
from trt_cls.data.folder import image_folder
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.export.torch_to_onnx import onnx_from_module
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.models.network import count_parameters
from trt_cls.pruning.prune import latencies_of_files, prune
from trt_cls.spec import load
from trt_cls.spec.experiment import CosineLr, Experiment, LrConfig
from trt_cls.training.run import train

RESULTS = Path(__file__).resolve().parent / "results" / "pruning.csv"


def retrained(experiment: Experiment, pruned: Path, folder: Path, epochs: int, rate: float) -> Path:
    """The best epoch's checkpoint of a training that begins with `pruned`."""
    config = experiment.train_config
    assert config is not None
    config = replace(
        config,
        pretrained_model_path=str(pruned),
        n_epochs=epochs,
        lr_config=LrConfig(cosine=CosineLr(learning_rate=rate, soft_start=0.1)),
    )
    return train(replace(experiment, train_config=config), folder, device="cpu").results.best


def top_1(onnx_file: Path, experiment: Experiment) -> float:
    config = experiment.eval_config
    assert config is not None
    with closing(open_engine(onnx_file, "cpu")) as engine:
        folder = image_folder(Path(config.eval_dataset_path), engine.contract.classes)
        found = evaluate(engine, folder, batch_size=config.batch_size, workers=config.n_workers, top_k=1)
    return found.metrics.top_1_accuracy


def measure(model: Path, experiment: Experiment, folder: Path, target: float, epochs: int, rate: float) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    pruned = folder / "pruned.safetensors"
    change = prune(model, pruned, target=target)
    checkpoints = {
        "unpruned": model,
        "pruned": pruned,
        "pruned, retrained": retrained(experiment, pruned, folder / "training", epochs, rate),
    }
    files = [folder / f"{number}.onnx" for number in range(len(checkpoints))]
    parameters = []
    for path, file in zip(checkpoints.values(), files, strict=True):
        checkpoint = load_checkpoint(path)
        parameters.append(count_parameters(checkpoint.module).total)
        write_onnx(onnx_from_module(checkpoint.module, checkpoint.contract), file)
    seconds = latencies_of_files(files)
    work = [change.multiply_adds.before, change.multiply_adds.after, change.multiply_adds.after]
    return [
        {
            "network": name,
            "top_1": f"{top_1(file, experiment):.4f}",
            "milliseconds": f"{1e3 * own:.3f}",
            "times_as_fast": f"{seconds[0] / own:.2f}",
            "multiply_adds": f"{own_work:.0f}",
            "share": f"{own_work / work[0]:.3f}",
            "parameters": count,
        }
        for name, file, own, own_work, count in zip(checkpoints, files, seconds, work, parameters, strict=True)
    ]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="trained checkpoint")
    parser.add_argument("-e", "--experiment-spec", type=Path, required=True, help="its spec, with eval_config")
    parser.add_argument("-r", "--results-dir", type=Path, required=True, help="folder for checkpoints and ONNX files")
    parser.add_argument("--target-flops", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.01, help="highest learning rate of the retraining")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    given = parser.parse_args()
    experiment = load(given.experiment_spec, needs=("train_config", "eval_config"), paths=False)
    rows = measure(given.model, experiment, given.results_dir, given.target_flops, given.epochs, given.rate)
    about = {
        "model": network_name(load_checkpoint(given.model).contract.model),
        "retraining_epochs": given.epochs,
        "machine": processor(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime")),
    }
    with given.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    print(given.csv.read_text(), end="")


if __name__ == "__main__":
    main()
