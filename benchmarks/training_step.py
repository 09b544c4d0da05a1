"""Time of a training step, compared with torchvision's network of the same name in a plain loop.

Each round measures all variants of ours and the plain loop in turn, so that a machine whose speed drifts does so for
all; results/training_step.csv has the medians of the rounds and of their ratios, with quartiles. The networks are not
the same: TAO's have other strides and heads, which the columns of multiply-adds and parameters show.

On a CPU, milliseconds are the CPU time of one step, with memory_kept. On a GPU they are the wall time of a step, of
many that are queued between two synchronizations. Ours is as in training: channels-last, deterministic algorithms. The
plain loop is as torchvision's reference script has it: NCHW, autocast, algorithms that cuDNN chose by trying.
host_milliseconds is the CPU time of all threads in which one step is queued while the GPU has nothing else to do: a
step that takes no longer than that is bound by launches.

Variants: eager, compiled (torch.compile), graphs (CUDA graphs). Rows of other sizes, batches, devices, precisions and
variants stay. Usage: OMP_NUM_THREADS=1 python benchmarks/training_step.py [ROUNDS] [--device cuda] [--precision bf16]
[--size 224] [--batch 32] [--variants eager graphs compiled] [--only NETWORK ...]
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from _results import about
from torch import nn
from torch.nn import functional

from trt_cls import models
from trt_cls.data.loader import TrainingBatch
from trt_cls.engines.torch import tf32
from trt_cls.errors import one_line
from trt_cls.models.network import multiply_adds
from trt_cls.spec.experiment import CosineLr, LrConfig, ModelConfig, Optimizer, RegConfig, Sgd, TrainConfig
from trt_cls.training.compute import Compute, choose_compute, memory_kept, repeatable
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
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "graphs": {"cuda_graphs": True},
    "compiled": {"compile_network": True},
}
"""By name: options of Learner."""
KEY = ("network", "size", "batch", "device", "precision", "variant")
WARM_UPS = {"cpu": 1, "cuda": 5}
ROUNDS = {"cpu": 9, "cuda": 5}
STEPS, FEWEST_STEPS, SECONDS = 20, 3, 0.2
"""Of a measurement on a GPU: steps, or fewer where these would take longer than the seconds."""

Step = Callable[[], None]


@dataclass
class Way:
    """A step to be measured, and what was found for it."""

    step: Step
    context: Callable[[], Any]
    """What it runs in."""
    steps: int = 1
    """In a measurement."""
    seconds: list[float] = field(default_factory=list)
    """Of a step, by round."""
    host_seconds: list[float] = field(default_factory=list)

    def run(self, steps: int, synchronize: Callable[[], None]) -> tuple[float, float, float]:
        """Wall seconds of `steps`, and CPU seconds of all of them and until the first was queued."""
        with self.context():
            synchronize()
            wall, host = time.perf_counter(), time.process_time()
            self.step()
            queued = time.process_time()
            for _ in range(steps - 1):
                self.step()
            synchronize()
            return time.perf_counter() - wall, time.process_time() - host, queued - host


class Bench:
    """One network at one size, in all variants."""

    def __init__(self, compute: Compute, name: str, size: int, batch: int) -> None:
        self.name, self.size, self.batch, self._compute = name, size, batch, compute
        self.kind = compute.device.type
        self._images = torch.randn(batch, 3, size, size).to(compute.device)
        self._targets = torch.randint(CLASSES, (batch,)).to(compute.device)

    def measure(self, variants: list[str], rounds: int) -> Iterator[dict[str, str]]:
        """A row for each variant; those that fail are left out."""
        ways = {variant: way for variant in variants if (way := self._begun(variant))}
        plain = self._begun("torchvision") if ways else None
        if plain is None:
            return
        for _ in range(rounds):
            for variant, way in list(ways.items()):
                with reported(self.name, variant) as went:
                    self._measure(way)
                if not went:
                    del ways[variant]
            self._measure(plain)
        for variant, way in ways.items():
            yield self._row(variant, way, plain)

    def _begun(self, variant: str) -> Way | None:
        """The way, warmed up; None where it fails."""
        with reported(self.name, variant) as went:
            way = self._plain() if variant == "torchvision" else self._ours(variant)
            way.run(WARM_UPS[self.kind], self._synchronize)
            if self.kind == "cuda":
                seconds = way.run(FEWEST_STEPS, self._synchronize)[0] / FEWEST_STEPS
                way.steps = max(FEWEST_STEPS, min(STEPS, int(SECONDS / seconds)))
        return way if went else None

    def _measure(self, way: Way) -> None:
        wall, cpu, host = way.run(way.steps, self._synchronize)
        way.seconds.append((cpu if self.kind == "cpu" else wall) / way.steps)
        way.host_seconds.append(host)

    def _synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def _ours(self, variant: str) -> Way:
        config = TrainConfig(
            train_dataset_path="",
            val_dataset_path="",
            batch_size_per_gpu=self.batch,
            optimizer=Optimizer(sgd=Sgd(momentum=MOMENTUM)),
            reg_config=RegConfig(type="L2", weight_decay=DECAY / 2),
            lr_config=LrConfig(cosine=CosineLr(learning_rate=RATE)),
        )
        targets = functional.one_hot(self._targets, CLASSES).float()
        # on a GPU they are prefetched in the layout
        images = self._images if self.kind == "cpu" else self._compute.images(self._images)
        batch = TrainingBatch(images, targets, ())
        learner = Learner(our_network(self.name, self.size), config, self._compute, **VARIANTS[variant])
        return Way(lambda: learner.step(batch, 0, RATE), lambda: repeatable(self._compute))

    def _plain(self) -> Way:
        images, targets, compute = self._images, self._targets, self._compute
        with compute.device:
            network = plain_network(self.name).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        scaler = torch.amp.GradScaler(self.kind, enabled=compute.precision == "fp16")

        def step() -> None:
            optimizer.zero_grad()
            with compute.autocast():
                loss = functional.cross_entropy(network(images), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return Way(step, lambda: as_in_torchvision(compute))

    def _row(self, variant: str, way: Way, plain: Way) -> dict[str, str]:
        pairs = zip(way.seconds, plain.seconds, strict=True)
        low, ratio, high = statistics.quantiles([theirs / ours for ours, theirs in pairs], n=4)
        ours = work(lambda: our_network(self.name, self.size), self.size)
        theirs = work(lambda: plain_network(self.name), self.size)
        on_gpu = self.kind == "cuda"
        return {
            "network": self.name,
            "size": str(self.size),
            "batch": str(self.batch),
            "device": self.kind,
            "precision": self._compute.precision,
            "variant": variant,
            "milliseconds": milliseconds(way.seconds, digits=2 * on_gpu),
            "torchvision_milliseconds": milliseconds(plain.seconds, digits=2 * on_gpu),
            "ratio": f"{ratio:.2f}",
            "ratio_quartiles": f"{low:.2f} {high:.2f}",
            "host_milliseconds": milliseconds(way.host_seconds, digits=2) if on_gpu else "",
            "torchvision_host_milliseconds": milliseconds(plain.host_seconds, digits=2) if on_gpu else "",
            "billion_multiply_adds": ours[0],
            "torchvision_billion_multiply_adds": theirs[0],
            "million_parameters": ours[1],
            "torchvision_million_parameters": theirs[1],
            "n": str(len(way.seconds)),
            "machine": about(())["machine"] if on_gpu else processor(),
            "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        }


def our_network(name: str, size: int) -> nn.Module:
    return models.build(ModelConfig(input_image_size=f"3,{size},{size}", **NETWORKS[name]), CLASSES)


def plain_network(name: str) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


@contextmanager
def reported(name: str, variant: str) -> Iterator[list[bool]]:
    """Prints why the variant fails; else the list is not empty afterwards."""
    went: list[bool] = []
    try:
        yield went
        went.append(True)
    except Exception as error:  # a network that one variant can't run is no reason to leave out the others
        print(f"{name}, {variant}: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)


@contextmanager
def as_in_torchvision(compute: Compute) -> Iterator[None]:
    """torch as torchvision's reference script sets it, with TF32 where ours has it."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        with tf32(torch, compute.precision != "fp32"):
            yield
    finally:
        cudnn.benchmark = before


def work(make: Callable[[], nn.Module], size: int) -> tuple[str, str]:
    """Billions of multiply-adds for an image, and millions of parameters."""
    with torch.device("meta"):
        network = make()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{multiply_adds(network, (3, size, size)) / 1e9:.3f}", f"{parameters / 1e6:.2f}"


def milliseconds(seconds: list[float], digits: int) -> str:
    return f"{1e3 * statistics.median(seconds):.{digits}f}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} CPUs"
    return f"{names[0] if names else platform.machine()} ({capability}), {threads}"


def save(row: dict[str, str]) -> None:
    """Puts the row in the place of the one for the same network, size, batch, device, precision and variant."""
    with RESULTS.open(newline="") as file:
        rows = [old for old in csv.DictReader(file) if set(old) == set(row)]
    rows = [old for old in rows if any(old[name] != row[name] for name in KEY)] + [row]
    rows.sort(key=place)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def place(row: dict[str, str]) -> tuple[str, int, str, int, int]:
    network, variant = list(NETWORKS).index(row["network"]), list(VARIANTS).index(row["variant"])
    return row["device"], int(row["size"]), row["precision"], network, variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?")
    parser.add_argument("--device", choices=list(ROUNDS), default="cpu")
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16", "fp16"], default="auto")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["eager"])
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), metavar="NETWORK")
    given = parser.parse_args()
    compute = choose_compute(given.device, given.precision)
    with memory_kept(compute):
        for name in given.only:
            bench = Bench(compute, name, given.size, given.batch)
            for row in bench.measure(given.variants, given.rounds or ROUNDS[given.device]):
                print(row, flush=True)
                save(row)
            del bench
            gc.collect()  # the memory of graphs, of which the next network needs its own


if __name__ == "__main__":
    main()
