"""Top-1 of recipes for training from scratch, with several seeds, on ten thousand photographs enlarged to 64×64.

Each (network, recipe, seed) is a training in a folder of its own below -r. Jobs run one after the other, seed by seed;
Ctrl-C, SIGTERM or kill -9 stop them, and the same command goes on where it was: finished jobs are not repeated.
results/recipes.csv has a row for each job, also for one that has not run, and one for the finished seeds of a recipe.
top_1 is that of the last epoch, since the best of many is flattered. CPU seconds include validation and what was
repeated after kill -9; on a GPU they are those of the host. Intervals of 95 % are Student's over the seeds; gains over
a network's first recipe are paired by seed.
Usage: OMP_NUM_THREADS=1 nice -n 19 python benchmarks/recipes.py DATA -r DIR [--only NETWORK/RECIPE ...] [--seeds 3]
[--device cpu] [--precision fp32] [--table], DATA with train/ and test/; --table only writes the results
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from _results import about, write
from scipy.stats import t

from trt_cls.errors import TrtClsError
from trt_cls.files import write_text
from trt_cls.spec import loads
from trt_cls.training.run import train
from trt_cls.training.run_folder import RunFolder

NETWORKS = {
    "vit_tiny": 'arch: "timm/vit_tiny_patch16_224"',
    "convnext_atto": 'arch: "timm/convnext_atto"',
    "resnet18": 'arch: "resnet" n_layers: 18 use_batch_norm: true',
}
SGD = """
  optimizer { sgd { momentum: 0.9 nesterov: true } }
  reg_config { type: "L2" scope: "Conv2D,Dense" weight_decay: 0.0005 }
"""
ADAMW = 'optimizer { adam { } } reg_config { type: "None" }'
TODAY = SGD + "lr_config { cosine { learning_rate: 0.1 soft_start: 0.2 } }"


class Recipe(NamedTuple):
    network: str
    name: str
    epochs: int
    training: str
    """Optimizer, penalty and schedule."""
    extensions: str = ""


RECIPES = (
    # specs/cifar10_resnet18.txt is `today` of resnet18; for the others it is shorter
    Recipe("vit_tiny", "today", 10, TODAY),
    Recipe(
        "vit_tiny",
        "adamw",
        10,
        ADAMW + "lr_config { cosine { learning_rate: 0.001 soft_start: 0.1 } }",
        "optimizer { adamw { weight_decay: 0.05 } } clip_grad_norm: 1.0",
    ),
    Recipe("convnext_atto", "today", 10, TODAY),
    Recipe(
        "convnext_atto",
        "adamw",
        10,
        ADAMW + "lr_config { cosine { learning_rate: 0.001 soft_start: 0.1 } }",
        "optimizer { adamw { weight_decay: 0.05 } } clip_grad_norm: 1.0",
    ),
    Recipe("resnet18", "today", 30, TODAY),
    # candidates, each with an epoch less: their augmentation and the running mean cost a hundredth of a step
    Recipe("resnet18", "erasing", 29, TODAY, "random_erasing: 0.5 ema_decay: 0.998"),
    Recipe("resnet18", "trivial", 29, TODAY, "trivial_augment: true random_erasing: 0.25 ema_decay: 0.998"),
)
SPEC = """
model_config {{ {network} input_image_size: "3,64,64" }}
train_config {{
  train_dataset_path: "{data}/train"
  val_dataset_path: "{data}/test"
  batch_size_per_gpu: 64 n_epochs: {epochs} n_workers: {workers} random_seed: {seed} preprocess_mode: "torch"
  enable_random_crop: false enable_center_crop: false enable_color_augmentation: false
  label_smoothing: 0.1 mixup_alpha: 0.0
  {training}
}}
extensions {{ crop_padding: 8 {extensions} }}
"""
NOTE_EVERY = 20.0
"""Seconds between two notes of the CPU time: what kill -9 may lose of it."""


class Job(NamedTuple):
    recipe: Recipe
    seed: int
    folder: Path

    @property
    def epochs(self) -> list[dict[str, str]]:
        """The rows of training.csv."""
        curve = RunFolder(self.folder).curve
        return list(csv.DictReader(curve.open())) if curve.exists() else []

    @property
    def done(self) -> bool:
        return len(self.epochs) == self.recipe.epochs

    @property
    def note(self) -> dict[str, str]:
        """Where the job ran, how precisely, and its CPU seconds."""
        path = self.folder / "job.json"
        return json.loads(path.read_text()) if path.exists() else {}


def jobs_of(recipes: list[Recipe], seeds: int, root: Path) -> list[Job]:
    return [
        Job(recipe, seed, root / f"{recipe.network}-{recipe.name}-{recipe.epochs}-{seed}")
        for network in NETWORKS
        for seed in range(seeds)
        for recipe in recipes
        if recipe.network == network
    ]


def run(job: Job, data: Path, device: str, precision: str) -> None:
    """Begins or resumes the training."""
    recipe, folder = job.recipe, RunFolder(job.folder)
    workers = 0 if device == "cpu" else 12  # a process of its own would not be counted
    text = SPEC.format(
        network=NETWORKS[recipe.network],
        data=data,
        epochs=recipe.epochs,
        workers=workers,
        seed=job.seed,
        training=recipe.training,
        extensions=recipe.extensions,
    )
    with cpu_seconds_noted(job, {"precision": precision, **about(("torch", "timm"))}):
        train(loads(text), job.folder, resume=folder.state.exists(), device=device, precision=precision)
    last = folder.checkpoint(loads(text).model_config.arch, recipe.epochs)
    for path in folder.weights.iterdir():
        if path != last:
            path.unlink()


@contextmanager
def cpu_seconds_noted(job: Job, origin: dict[str, str]) -> Iterator[None]:
    """Adds this process's CPU time to that of the job's earlier sittings, again and again while it runs."""
    before, started, over = float(job.note.get("cpu_seconds", 0)), time.process_time(), threading.Event()

    def note() -> None:
        seconds = before + time.process_time() - started
        write_text(job.folder / "job.json", json.dumps({**origin, "cpu_seconds": f"{seconds:.0f}"}))

    def keep_noting() -> None:
        while not over.wait(NOTE_EVERY):
            note()

    noting = threading.Thread(target=keep_noting, daemon=True)
    noting.start()
    try:
        yield
    finally:
        over.set()
        noting.join()
        note()


def rows_of(jobs: list[Job]) -> list[dict[str, object]]:
    rows = [row_of(job) for job in jobs]
    for recipe in dict.fromkeys(job.recipe for job in jobs):
        first = next(job.recipe for job in jobs if job.recipe.network == recipe.network)
        found, plain = finished(jobs, recipe), finished(jobs, first)
        if len(found) < 2:
            continue
        top_1, seconds = zip(*found.values(), strict=True)
        row = {
            **row_of(next(job for job in jobs if job.recipe == recipe and job.done)),
            "seed": f"mean of {len(found)}",
            "top_1": with_interval(list(top_1), 100, 2),
            "best_top_1": "",
            "cpu_seconds": f"{statistics.mean(seconds):.0f}",
        }
        gains = [found[seed][0] - plain[seed][0] for seed in found if seed in plain]
        if recipe != first and len(gains) > 1:
            row["points_gained"] = with_interval(gains, 100, 2)
        rows.append(row)
    return rows


def row_of(job: Job) -> dict[str, object]:
    epochs, note = job.epochs, job.note
    state = "done" if job.done else f"stopped after epoch {len(epochs)}" if epochs else "not run"
    top_1 = [100 * float(row["val_acc"]) for row in epochs]
    return {
        "network": job.recipe.network,
        "recipe": job.recipe.name,
        "seed": job.seed,
        "state": state,
        "epochs": job.recipe.epochs,
        "top_1": f"{top_1[-1]:.2f}" if job.done else "",
        "best_top_1": f"{max(top_1):.2f}" if job.done else "",
        "points_gained": "",
        "cpu_seconds": note.get("cpu_seconds", ""),
        **{name: note.get(name, "") for name in ("precision", "machine", "versions")},
    }


def finished(jobs: list[Job], recipe: Recipe) -> dict[int, tuple[float, float]]:
    """Top-1 and CPU seconds of a recipe, by seed."""
    return {
        job.seed: (float(job.epochs[-1]["val_acc"]), float(job.note["cpu_seconds"]))
        for job in jobs
        if job.recipe == recipe and job.done
    }


def with_interval(values: list[float], scale: float, digits: int) -> str:
    mean, n = statistics.mean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with train/ and test/, a folder per class in each")
    parser.add_argument("-r", "--results", type=Path, help="folder to keep the trainings in")
    parser.add_argument("--only", nargs="*", help="such as vit_tiny, or vit_tiny/adamw")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", help="the same for all jobs")
    parser.add_argument("--table", action="store_true", help="train nothing, write the results")
    given = parser.parse_args()
    if given.data is None or given.results is None:
        print("recipes: not run, it needs labeled images and a folder for the trainings: recipes.py DATA -r DIR")
        return 1
    jobs = jobs_of(list(RECIPES), given.seeds, given.results)
    for job in jobs:
        names = {job.recipe.network, f"{job.recipe.network}/{job.recipe.name}"}
        if job.done or given.table or (given.only and not names & set(given.only)):
            continue
        try:
            run(job, given.data.absolute(), given.device, given.precision)
        except TrtClsError as error:
            print(f"recipes: {error}", file=sys.stderr)
            break
        finally:
            write("recipes", rows_of(jobs))
    if given.table:
        write("recipes", rows_of(jobs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
