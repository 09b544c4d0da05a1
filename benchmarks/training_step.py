"""CPU time of a training step, compared with torchvision's network of the same name in a plain loop.

Each round measures both in turn, so that a machine whose speed drifts does so for both; results/training_step.csv has
the medians of the rounds and of their ratios, with quartiles. The networks are not the same: TAO's have other strides
and heads, which the columns of multiply-adds and parameters show. Both run with memory_kept; rows of other sizes and
batches stay. Usage: OMP_NUM_THREADS=1 python benchmarks/training_step.py [ROUNDS] [--size 224] [--batch 32]
[--only NETWORK ...]
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional

from trt_cls import models
from trt_cls.data.loader import TrainingBatch
from trt_cls.models.network import multiply_adds
from trt_cls.spec.experiment import CosineLr, LrConfig, ModelConfig, Optimizer, RegConfig, Sgd, TrainConfig
from trt_cls.training.compute import choose_compute, memory_kept, repeatable
from trt_cls.training.learner import Learner

RESULTS = Path(__file__).resolve().parent / "results" / "training_step.csv"
CLASSES, RATE, MOMENTUM, DECAY = 1000, 0.01, 0.9, 1e-4
NETWORKS: dict[str, dict[str, Any]] = {
    # with use_pooling 1.83 billion multiplications an image of 224 px; without, as is the default, 3.06
    "resnet18": {"arch": "resnet", "n_layers": 18, "use_batch_norm": True, "use_pooling": True},
    "resnet50": {"arch": "resnet", "n_layers": 50, "use_batch_norm": True, "use_pooling": True},
    "vgg16_bn": {"arch": "vgg", "n_layers": 16, "use_batch_norm": True, "use_pooling": True},
    "mobilenet_v2": {"arch": "mobilenet_v2", "use_batch_norm": True},
    "efficientnet_b0": {"arch": "efficientnet_b0", "use_batch_norm": True},
    "squeezenet1_0": {"arch": "squeezenet"},
    "googlenet": {"arch": "googlenet", "use_batch_norm": True},
    "alexnet": {"arch": "alexnet"},
}
"""By torchvision's name: our model_config."""


def our_network(name: str, size: int) -> nn.Module:
    return models.build(ModelConfig(input_image_size=f"3,{size},{size}", **NETWORKS[name]), CLASSES)


def plain_network(name: str) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


def our_step(name: str, images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    config = TrainConfig(
        train_dataset_path="",
        val_dataset_path="",
        batch_size_per_gpu=len(images),
        optimizer=Optimizer(sgd=Sgd(momentum=MOMENTUM)),
        reg_config=RegConfig(type="L2", weight_decay=DECAY / 2),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=RATE)),
    )
    learner = Learner(our_network(name, images.shape[-1]), config, choose_compute("cpu", "fp32"))
    batch = TrainingBatch(images, targets, ())
    return lambda: learner.step(batch, 0, RATE)


def plain_step(name: str, images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    network = plain_network(name).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def measure(name: str, rounds: int, size: int, batch: int) -> list[tuple[float, float]]:
    """CPU seconds of our step and of the plain one, round by round, after one of each to warm up."""
    images = torch.randn(batch, 3, size, size)
    targets = torch.randint(CLASSES, (batch,))
    plain = plain_step(name, images, targets)
    with repeatable("fp32"):
        ours = our_step(name, images, functional.one_hot(targets, CLASSES).float())
        ours()
    plain()
    found = []
    for _ in range(rounds):
        with repeatable("fp32"):
            our_seconds = seconds(ours)
        found.append((our_seconds, seconds(plain)))
    return found


def work(make: Callable[[], nn.Module], size: int) -> tuple[str, str]:
    """Billions of multiply-adds for an image, and millions of parameters."""
    with torch.device("meta"):
        network = make()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{multiply_adds(network, (3, size, size)) / 1e9:.3f}", f"{parameters / 1e6:.2f}"


def row_of(name: str, found: list[tuple[float, float]], size: int, batch: int) -> dict[str, str]:
    low, ratio, high = statistics.quantiles([plain / ours for ours, plain in found], n=4)
    ours, plain = work(lambda: our_network(name, size), size), work(lambda: plain_network(name), size)
    return {
        "network": name,
        "size": str(size),
        "batch": str(batch),
        "cpu_milliseconds": f"{1e3 * statistics.median(seconds for seconds, _ in found):.0f}",
        "torchvision_cpu_milliseconds": f"{1e3 * statistics.median(seconds for _, seconds in found):.0f}",
        "ratio": f"{ratio:.2f}",
        "ratio_quartiles": f"{low:.2f} {high:.2f}",
        "billion_multiply_adds": ours[0],
        "torchvision_billion_multiply_adds": plain[0],
        "million_parameters": ours[1],
        "torchvision_million_parameters": plain[1],
        "n": str(len(found)),
        "machine": processor(),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} CPUs"
    return f"{names[0] if names else platform.machine()} ({capability}), {threads}"


def save(row: dict[str, str]) -> None:
    """Puts the row in the place of the one for the same network, size and batch."""
    key = tuple(row)[:3]
    with RESULTS.open(newline="") as file:
        rows = [old for old in csv.DictReader(file) if set(old) == set(row)]
    rows = [old for old in rows if any(old[name] != row[name] for name in key)] + [row]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (int(row["size"]), list(NETWORKS).index(row["network"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=9)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), metavar="NETWORK")
    given = parser.parse_args()
    with memory_kept(choose_compute("cpu", "fp32")):
        for name in given.only:
            row = row_of(name, measure(name, given.rounds, given.size, given.batch), given.size, given.batch)
            print(row, flush=True)
            save(row)


if __name__ == "__main__":
    main()
