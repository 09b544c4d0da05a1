"""Several processes under torchrun with gloo: the numbers of one process, each image once, one error, one state."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.forked import Forked
from trt_cls import spec
from trt_cls.data.folder import image_folder
from trt_cls.data.shard_writer import write_shards
from trt_cls.spec.experiment import CosineLr, Experiment, LrConfig, ModelConfig, Optimizer, Sgd

Make = Callable[..., Experiment]
TRAINER = Path(__file__).with_name("recording_trainer.py")
PLAIN = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=False)
BATCH_NORM = ModelConfig(arch="squeezenet", input_image_size="3,32,32", use_batch_norm=True, retain_head=True)
NOTHING_DRAWN = {"mixup_alpha": 0.0, "enable_random_crop": False, "disable_horizontal_flip": True}


@pytest.fixture(scope="module")
def odd_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images to train on, and 11 to validate on, which neither two nor three processes share evenly."""
    root = tmp_path_factory.mktemp("odd")
    shutil.copytree(images, root, dirs_exist_ok=True)
    (root / "val/red/00.png").unlink()
    return root


def write_spec(path: Path, experiment: Experiment) -> Path:
    path.write_text(spec.show(experiment))
    return path


def command(spec_file: Path, results: Path, processes: int) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(TRAINER)]
    return [sys.executable, *start, *arguments(spec_file, results)]


def arguments(spec_file: Path, results: Path) -> list[str]:
    return ["train", "-e", str(spec_file), "-r", str(results), "--device", "cpu"]


def environment(record: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "RECORD": str(record), **more}


def run(started: list[str], record: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(started, env=environment(record, **more), capture_output=True, text=True, timeout=400)


def steps(record: Path) -> dict[int, list[dict[str, Any]]]:
    """What each process wrote of each step."""
    found = defaultdict(list)
    for path in sorted(record.parent.glob(f"{record.name}.*")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["step"]].append(entry)
    return found


def mean_loss(entries: list[dict[str, Any]]) -> float:
    return float(sum(entry["loss"] for entry in entries) / sum(entry["images"] for entry in entries))


def curve(folder: Path) -> list[dict[str, float]]:
    with (folder / "training.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "epochs", "sharded"), [(2, 10, False), (3, 13, False), (2, 10, True)])
def test_processes_learn_as_one_with_the_whole_batch(
    processes: int, epochs: int, sharded: bool, odd_images: Path, experiment: Make, forked: Forked, tmp_path: Path
) -> None:
    # the last batch of an epoch has 5 images for two processes; 3 for three, of which two then have none
    common: dict[str, Any] = {"root": odd_images, "model": PLAIN, "n_epochs": epochs, **NOTHING_DRAWN}
    if sharded:
        last = len(write_shards(image_folder(odd_images / "train"), tmp_path, "t", 9_000).shards) - 1
        common["train_dataset_path"] = f"{tmp_path}/t-{{000000..{last:06}}}.tar"
    for name, count in (("one", 1), ("several", processes)):
        asked = experiment(
            **common,
            batch_size_per_gpu=2 * processes // count,
            # a higher rate, or momentum, makes of the last bit, in which sums of other orders differ, a thousandth
            lr_config=LrConfig(cosine=CosineLr(learning_rate=0.005 / count, soft_start=0.2)),
            optimizer=Optimizer(sgd=Sgd(momentum=0.0)),
        )
        given = {"RECORD": str(tmp_path / f"rec-{name}"), "NARROW": "1"}
        file = write_spec(tmp_path / f"{name}.txt", asked)
        done = forked.run(count, arguments(file, tmp_path / name), TRAINER, environment=given)
        assert done.returncode == 0, done.stderr
    one, several = steps(tmp_path / "rec-one"), steps(tmp_path / "rec-several")
    assert len(one) == len(several) >= 50

    for number, entries in one.items():
        assert len(several[number]) == processes
        assert several[number][0]["rate"] == pytest.approx(entries[0]["rate"], rel=1e-12)
        assert mean_loss(several[number]) == pytest.approx(mean_loss(entries), abs=1e-5)
        assert Counter(image for entry in several[number] for image in entry["seen"]) == Counter(entries[0]["seen"])
    an_epoch = [entry for number in range(len(one) // epochs) for entry in several[number]]
    assert set(Counter(image for entry in an_epoch for image in entry["seen"]).values()) == {1}
    assert sum(len(entry["seen"]) for entry in an_epoch) == 21

    for row, expected in zip(curve(tmp_path / "several"), curve(tmp_path / "one"), strict=True):
        assert row["val_acc"] == expected["val_acc"]
        assert row["acc"] == expected["acc"]
        assert row["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-4)


def wait_for(process: subprocess.Popen[str], record: Path, number: int) -> None:
    """Until both processes have done step `number`."""
    while len(steps(record)[number]) < 2:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_saves_once_and_the_same_processes_go_on(
    odd_images: Path, experiment: Make, forked: Forked, tmp_path: Path
) -> None:
    """Those of torchrun, beside forked ones that are not interrupted."""
    asked = experiment(root=odd_images, model=BATCH_NORM, batch_size_per_gpu=2, n_epochs=4)
    file = write_spec(tmp_path / "spec.txt", asked)
    record = {"RECORD": str(tmp_path / "rec")}
    assert forked.run(2, arguments(file, tmp_path / "whole"), TRAINER, environment=record).returncode == 0

    parts = tmp_path / "parts"
    started = subprocess.Popen(
        command(file, parts, 2), env=environment(tmp_path / "rec-parts"), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(started, tmp_path / "rec-parts", 4)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: all of them get it
    _, errors = started.communicate(timeout=200)
    reported = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(reported) == 1
    assert "is saved; go on with: torchrun --nproc-per-node 2 -m trt_cls train" in reported[0]

    resume = [*arguments(file, parts), "--resume"]
    alone = forked.run(1, resume, TRAINER, environment=record)
    assert alone.returncode == 2
    assert "processes: 2 ≠ 1" in alone.stderr

    resumed = forked.run(2, resume, TRAINER, environment=record)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("training.csv", "weights/squeezenet_004.safetensors", "weights/best.safetensors"):
        assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_process_ends_all_with_one_line(odd_images: Path, experiment: Make, tmp_path: Path) -> None:
    asked = experiment(root=odd_images, model=PLAIN, batch_size_per_gpu=4, n_epochs=500)
    file, record = write_spec(tmp_path / "spec.txt", asked), tmp_path / "rec"
    started = subprocess.Popen(
        command(file, tmp_path / "run", 2), env=environment(record), stderr=subprocess.PIPE, text=True
    )
    wait_for(started, record, 2)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = started.communicate(timeout=200)
    assert started.returncode != 0
    reported = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(reported) == 1
    assert "another one ended without an error" in reported[0]


@pytest.mark.slow
def test_what_gpus_starts_ends_with_the_error_of_one(odd_images: Path, experiment: Make, tmp_path: Path) -> None:
    asked = experiment(root=odd_images, model=PLAIN, batch_size_per_gpu=4)
    file = write_spec(tmp_path / "spec.txt", asked)
    code = "import sys; from trt_cls.distributed.launch import run_in_processes as run; sys.exit(run(2, sys.argv[1:]))"
    asked_for = ["train", f"--experiment-spec={file}", f"--results-dir={tmp_path / 'run'}", "--device=cpu"]
    done = run([sys.executable, "-c", code, str(TRAINER), *asked_for], tmp_path / "rec", FAIL="1/2")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "cpu · torch" not in line]
    assert lines == ["error: this is the failure of process 1"]
