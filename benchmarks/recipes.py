"""Top-1 of recipes for training from scratch, with several seeds, on ten thousand photographs enlarged to 64×64.

Each (network, recipe, seed) is a training in a folder of its own below -r and in a process of its own, --jobs at a
time; with a --deadline, in seconds, no later. Ctrl-C, SIGTERM, kill -9 and the deadline stop them, and the same command
goes on where it was: finished jobs are not repeated. What a job prints is in its console.txt.
results/recipes.csv has a row for each job, also for one that has not run, and one for the finished seeds of a recipe.
top_1 is that of the last epoch, since the best of many is flattered; top_1_flips that of the same network by
`evaluate --tta flip`. CPU seconds include validation and what was repeated after kill -9; on a GPU they are those of
the host. Intervals of 95 % are Student's over the seeds; gains over a network's first recipe are paired by seed.
--choose trains CANDIDATES in place of RECIPES, with another seed, and validates on a fifth of train/, so that recipes
are not chosen on the images that measure them: results/recipes_choice.csv. --cost ROUNDS compares the CPU time of
resnet18's recipes, in fp32 and bf16: results/recipes_cost.csv.
Usage: nice -n 19 python benchmarks/recipes.py DATA -r DIR [--choose] [--only NETWORK/RECIPE ...] [--seeds 3] [--jobs 1]
[--deadline SECONDS] [--device cpu] [--precision fp32] [--workers 0] [--table], or DATA --cost ROUNDS; DATA with train/
and test/; --table only writes the results. Each job has one thread, unless OMP_NUM_THREADS says otherwise
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from _recipes import CANDIDATES, NETWORKS, RECIPES, Recipe, experiment_of
from _results import about, write
from recipes_cost import cost_rows
from scipy.stats import t

from trt_cls.data.split import Dataset
from trt_cls.engines import open_engine
from trt_cls.errors import TrtClsError
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.evaluation.inference import WithFlips
from trt_cls.files import write_text
from trt_cls.training.logs.console import Reporter
from trt_cls.training.run import train
from trt_cls.training.run_folder import RunFolder
from trt_cls.training.state import Interrupted, StopRequest

SEED_TO_CHOOSE = 100
FLIPS = "top_1_flips"
NOTE_EVERY = 5.0
"""Seconds between two notes of the CPU time: what kill -9 may lose of it."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the deadline and at signals."""
TIME_TO_SAVE = 30.0
"""Seconds from SIGTERM to SIGKILL."""


class Result(NamedTuple):
    top_1: float
    flips: float | None
    """Top-1 of the mean over each image and its mirror image; None: not measured."""
    cpu_seconds: float


Finished = dict[int, Result]
"""Those of a recipe, by seed."""


class Job(NamedTuple):
    recipe: Recipe
    seed: int
    folder: Path
    choosing: bool

    @property
    def name(self) -> str:
        return f"{self.recipe.network}/{self.recipe.name}, seed {self.seed}"

    @property
    def epochs(self) -> list[dict[str, str]]:
        """The rows of training.csv."""
        curve = RunFolder(self.folder).curve
        return list(csv.DictReader(curve.open())) if curve.exists() else []

    @property
    def done(self) -> bool:
        return len(self.epochs) == self.recipe.epochs and (self.choosing or FLIPS in self.note)

    @property
    def note(self) -> dict[str, str]:
        """Where the job ran, how precisely, and its CPU seconds."""
        path = self.folder / "job.json"
        return json.loads(path.read_text()) if path.exists() else {}


class Place(NamedTuple):
    """Where the images are, and how jobs run."""

    data: Path
    device: str
    precision: str
    workers: int


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """Of all recipes, network by network and seed by seed."""
    recipes, first, root = RECIPES, 0, given.results
    if given.choose:
        recipes, first, root = CANDIDATES, SEED_TO_CHOOSE, given.results / "choice"
    seeds = given.seeds or (1 if given.choose else 3)
    return [
        Job(recipe, seed, root / f"{recipe.network}-{recipe.name}-{recipe.epochs}-{seed}", given.choose)
        for network in NETWORKS
        for seed in range(first, first + seeds)
        for recipe in recipes
        if recipe.network == network
    ]


def run(job: Job, place: Place) -> None:
    """Begins or resumes the training, and evaluates its network with flips."""
    folder = RunFolder(job.folder)
    experiment = experiment_of(job.recipe, place.data, seed=job.seed, workers=place.workers, choosing=job.choosing)
    note = {"device": place.device, "precision": place.precision, **about(("torch", "timm"))}
    with cpu_seconds_noted(job, note):
        if len(job.epochs) < job.recipe.epochs:
            train(
                experiment,
                job.folder,
                resume=folder.state.exists(),
                device=place.device,
                precision=place.precision,
                cuda_graphs=place.device == "cuda",
                reporter=Reporter(),
            )
        if not job.choosing:
            note[FLIPS] = f"{top_1_with_flips(job, place):.4f}"
    remove_old_weights(folder)
    folder.best.unlink(missing_ok=True)


def top_1_with_flips(job: Job, place: Place) -> float:
    """Of the last epoch's network."""
    last = max(RunFolder(job.folder).weights.glob("[!.]*_[0-9][0-9][0-9].safetensors"))
    with closing(WithFlips(open_engine(last, place.device))) as engine:
        folder = Dataset(place.data / "test").labeled(engine.contract.classes)
        return evaluate(engine, folder, top_k=1, batch_size=64, workers=place.workers).metrics.top_1_accuracy


def remove_old_weights(folder: RunFolder) -> None:
    """All but those of the last epoch so far, and the best."""
    for path in sorted(folder.weights.glob("[!.]*_[0-9][0-9][0-9].safetensors"))[:-1]:
        path.unlink()


def run_alone(job: Job, place: Place) -> None:
    """Runs a job as a process: it ends with its parent, and 130 is its status if it was interrupted."""
    os.setpgrp()  # Ctrl-C is the parent's, which sends one signal: the second would end a training at once
    threading.Thread(target=end_with_parent, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (job.folder / "console.txt").open("a") as file, redirect_stderr(file):
            run(job, place)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except TrtClsError as error:
        print(f"recipes: {job.name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def run_all(jobs: Sequence[Job], place: Place, given: argparse.Namespace, table: str) -> int:
    """Runs the jobs that are not done, writes the table after each, and returns the script's exit status."""
    waiting = [job for job in jobs if wanted(job, given.only) and not job.done]
    running: dict[SpawnProcess, Job] = {}
    failed, ends = False, time.monotonic() + given.deadline
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.requested and time.monotonic() < ends:
                while waiting and len(running) < given.jobs:
                    job = waiting.pop(0)
                    process = multiprocessing.get_context("spawn").Process(target=run_alone, args=(job, place))
                    process.start()
                    running[process] = job
                wait([process.sentinel for process in running], LOOK_EVERY)
                for process in [process for process in running if not process.is_alive()]:
                    job = running.pop(process)
                    print(f"recipes: {job.name}: {state_of(job)}", file=sys.stderr, flush=True)
                    failed = failed or not job.done
                    write(table, rows_of(jobs), shown=False)
        finally:
            end(list(running))
            write(table, rows_of(jobs))
    return Interrupted.exit_code if stop.requested else int(failed)


def wanted(job: Job, only: Sequence[str] | None) -> bool:
    return not only or bool({job.recipe.network, f"{job.recipe.network}/{job.recipe.name}"} & set(only))


def end(processes: Sequence[SpawnProcess]) -> None:
    """Lets them save their state."""
    for process in processes:
        process.terminate()
    ends = time.monotonic() + TIME_TO_SAVE
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))
        process.kill()


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
            remove_old_weights(RunFolder(job.folder))

    note()
    noting = threading.Thread(target=keep_noting, daemon=True)
    noting.start()
    try:
        yield
    finally:
        over.set()
        noting.join()
        note()


def rows_of(jobs: Sequence[Job]) -> list[dict[str, object]]:
    recipes = list(dict.fromkeys(job.recipe for job in jobs))
    found = {recipe: finished(jobs, recipe) for recipe in recipes}
    firsts = {recipe.network: recipe for recipe in reversed(recipes)}
    gains = {
        recipe: {} if recipe == firsts[recipe.network] else gained(found[recipe], found[firsts[recipe.network]])
        for recipe in recipes
    }
    rows = []
    for job in jobs:
        gain = gains[job.recipe].get(job.seed)
        rows.append(row_of(job) | {"points_gained": "" if gain is None else f"{100 * gain:.2f}"})
    for recipe in recipes:
        if len(found[recipe]) < 2:
            continue
        top_1, flips, seconds = zip(*found[recipe].values(), strict=True)
        paired = list(gains[recipe].values())
        row = {
            **row_of(next(job for job in jobs if job.recipe == recipe and job.done)),
            "seed": f"mean of {len(top_1)}",
            "top_1": with_interval(top_1, 100, 2),
            FLIPS: "" if None in flips else with_interval(flips, 100, 2),
            "best_top_1": "",
            "points_gained": with_interval(paired, 100, 2) if len(paired) > 1 else "",
            "cpu_seconds": f"{statistics.mean(seconds):.0f}",
        }
        rows.append(row)
    return rows


def row_of(job: Job) -> dict[str, object]:
    epochs, note = job.epochs, job.note
    top_1 = [100 * float(row["val_acc"]) for row in epochs]
    return {
        "network": job.recipe.network,
        "recipe": job.recipe.name,
        "seed": job.seed,
        "state": state_of(job),
        "epochs": job.recipe.epochs,
        "top_1": f"{top_1[-1]:.2f}" if job.done else "",
        FLIPS: f"{100 * float(note[FLIPS]):.2f}" if FLIPS in note else "",
        "best_top_1": f"{max(top_1):.2f}" if job.done else "",
        "points_gained": "",
        "cpu_seconds": note.get("cpu_seconds", ""),
        "changes": job.recipe.changes,
        **{name: note.get(name, "") for name in ("device", "precision", "machine", "versions")},
    }


def state_of(job: Job) -> str:
    return "done" if job.done else f"stopped after {len(job.epochs)} epochs" if job.note else "not run"


def finished(jobs: Sequence[Job], recipe: Recipe) -> Finished:
    return {
        job.seed: Result(
            float(job.epochs[-1]["val_acc"]),
            float(job.note[FLIPS]) if FLIPS in job.note else None,
            float(job.note["cpu_seconds"]),
        )
        for job in jobs
        if job.recipe == recipe and job.done
    }


def gained(found: Finished, plain: Finished) -> dict[int, float]:
    """Top-1 less that of the plain recipe, by seed."""
    return {seed: result.top_1 - plain[seed].top_1 for seed, result in found.items() if seed in plain}


def with_interval(values: Sequence[float], scale: float, digits: int) -> str:
    mean, n = statistics.mean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with train/ and test/, a folder per class in each")
    parser.add_argument("-r", "--results", type=Path, help="folder to keep the trainings in")
    parser.add_argument("--choose", action="store_true", help="train the candidates, validated on a fifth of train/")
    parser.add_argument("--cost", type=int, metavar="ROUNDS", help="only compare the CPU time of resnet18's recipes")
    parser.add_argument("--only", nargs="*", help="such as vit_tiny, or vit_tiny/adamw0.001")
    parser.add_argument("--seeds", type=int, help="3, or 1 with --choose")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds, after which all are stopped")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", help="the same for all jobs")
    parser.add_argument("--workers", type=int, default=0, help="a job's loader processes, whose time is not counted")
    parser.add_argument("--table", action="store_true", help="train nothing, write the results")
    given = parser.parse_args()
    if given.data is None or (given.results is None and not given.cost):
        print("recipes: not run, it needs labeled images and a folder for the trainings: recipes.py DATA -r DIR")
        return 1
    data = given.data.absolute()
    if given.cost:
        of_resnet18 = {each.name: experiment_of(each, data) for each in RECIPES if each.network == "resnet18"}
        write("recipes_cost", [row for each in ("fp32", "bf16") for row in cost_rows(of_resnet18, given.cost, each)])
        return 0
    jobs = jobs_of(given)
    table = "recipes_choice" if given.choose else "recipes"
    if given.table:
        write(table, rows_of(jobs))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the jobs' torch
    return run_all(jobs, Place(data, given.device, given.precision, given.workers), given, table)


if __name__ == "__main__":
    sys.exit(main())
