"""Speed of a training step, compared with torchvision's network of the same width in a plain loop.

Each round measures both in turn, so that a machine whose speed drifts does so for both; the medians of the rounds and
of their ratios are written to results/training_step.csv. Usage: python benchmarks/training_step.py [ROUNDS]
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch.nn import functional

from trt_cls import models
from trt_cls.data.loader import TrainingBatch
from trt_cls.spec.experiment import CosineLr, LrConfig, ModelConfig, Optimizer, RegConfig, Sgd, TrainConfig
from trt_cls.training.compute import choose_compute, repeatable
from trt_cls.training.learner import Learner

RESULTS = Path(__file__).resolve().parent / "results" / "training_step.csv"
BATCH, CLASSES, RATE, MOMENTUM, DECAY = 32, 1000, 0.01, 0.9, 1e-4
NETWORKS = {
    # with use_pooling 1.83 billion multiplications an image, torchvision's 1.81; without, as is the default, 3.06
    "resnet18": ModelConfig(
        arch="resnet", n_layers=18, input_image_size="3,224,224", use_batch_norm=True, use_pooling=True
    ),
    "mobilenet_v2": ModelConfig(arch="mobilenet_v2", input_image_size="3,224,224", use_batch_norm=True),
}


def our_step(name: str, images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    config = TrainConfig(
        train_dataset_path="",
        val_dataset_path="",
        batch_size_per_gpu=BATCH,
        optimizer=Optimizer(sgd=Sgd(momentum=MOMENTUM)),
        reg_config=RegConfig(type="L2", weight_decay=DECAY / 2),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=RATE)),
    )
    learner = Learner(models.build(NETWORKS[name], CLASSES), config, choose_compute("cpu", "fp32"))
    batch = TrainingBatch(images, targets, ())
    return lambda: learner.step(batch, 0, RATE)


def plain_step(name: str, images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    network = torchvision.models.get_model(name, weights=None, num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> list[tuple[float, float]]:
    """Seconds of our step and of the plain one, round by round, after one of each to warm up."""
    images = torch.randn(BATCH, 3, 224, 224)
    targets = torch.randint(CLASSES, (BATCH,))
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


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    rows = []
    for name in NETWORKS:
        found = measure(name, rounds)
        rows.append(
            {
                "network": name,
                "images_per_second": f"{BATCH / statistics.median(ours for ours, _ in found):.1f}",
                "torchvision_images_per_second": f"{BATCH / statistics.median(plain for _, plain in found):.1f}",
                "ratio": f"{statistics.median(plain / ours for ours, plain in found):.2f}",
                "batch": BATCH,
                "n": rounds,
                "machine": processor(),
                "versions": versions,
            }
        )
        print(rows[-1])
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
