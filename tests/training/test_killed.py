"""A training that is killed with SIGKILL again and again, and resumed, ends as one that was left alone, to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from trt_cls import spec
from trt_cls.data.folder import image_folder
from trt_cls.data.shard_writer import write_shards
from trt_cls.spec.experiment import (
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    RandAugment,
    RegConfig,
    Visualizer,
)
from trt_cls.spec.extensions import Lamb, Lion, ModernOptimizer, Muon, ProgressiveResizing, RandomResizedCrop

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

MODEL = ModelConfig(arch="squeezenet", input_image_size="3,32,32", retain_head=True, dropout=0.5)
EPOCHS, KILLS = 4, 12
SHARDS, KILLS_OF_A_SOURCE = {"train": 11, "val": 6}, 2
Make = Callable[..., Experiment]


class Trainer:
    """The forking process and the training that it runs."""

    def __init__(self, text: str) -> None:
        self._spec = text
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forking_trainer.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, results: Path, **given: str) -> int:
        """Begins a training, or goes on with the one whose state is there; returns the process's number."""
        asked = {"spec": self._spec, "results": str(results), "resume": (results / "train_state.pt").exists()}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked | given) + "\n")
        self._server.stdin.flush()
        return self._number()

    def end(self) -> int:
        """Waits for its end and returns the exit status."""
        return self._number()

    def close(self) -> None:
        self._server.communicate()

    def _number(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


@pytest.fixture(scope="module")
def trainer(experiment: Make) -> Iterator[Trainer]:
    asked = experiment(
        model=MODEL, batch_size_per_gpu=2, n_epochs=EPOCHS, visualizer=Visualizer(enabled=True, num_images=1)
    )
    running = Trainer(spec.show(asked))
    yield running
    running.close()


def unfinished(folder: Path) -> list[str]:
    """Files that are being written."""
    return [path.name for path in folder.rglob(".*")]


def kill_in_a_write(process: int, folder: Path, writes: int) -> bool:
    """Kills the training in its `writes`-th write from now; False where it ends before."""
    seen: set[str] = set()
    while len(seen) < writes:
        if not Path(f"/proc/{process}").exists():
            return False
        seen.update(unfinished(folder))
    return kill(process)


def kill(process: int) -> bool:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(trainer: Trainer, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    started = time.monotonic()
    trainer.start(whole)
    assert trainer.end() == 0
    seconds = time.monotonic() - started

    draw = random.Random(3)
    died_of, torn = [], 0
    for attempt in range(KILLS):
        process = trainer.start(killed)
        if attempt % 2:
            kill_in_a_write(process, killed, draw.randint(1, 6))
        else:
            threading.Event().wait(draw.uniform(0.05, seconds / KILLS))
            kill(process)
        died_of.append(trainer.end())
        torn += bool(unfinished(killed))
    assert died_of.count(-signal.SIGKILL) >= 10
    assert torn >= 3
    trainer.start(killed)
    assert trainer.end() == 0

    assert not unfinished(killed)
    compared = ["training.csv", *(f"weights/{path.name}" for path in (whole / "weights").iterdir())]
    assert len(compared) == EPOCHS + 2
    assert sorted(path.name for path in (killed / "weights").iterdir()) == sorted(Path(n).name for n in compared[1:])
    for name in compared:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    check_logs(killed)


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images in shards of a few."""
    out = tmp_path_factory.mktemp("shards")
    for part, count in SHARDS.items():
        assert len(write_shards(image_folder(images / part), out, part, 10_000).shards) == count
    return out


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, images: Path, shards: Path) -> Iterator[str]:
    """The images where the parameter says."""
    if request.param == "http":
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(shards))) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
    elif request.param == "s3":
        if "AWS_ENDPOINT_URL" not in os.environ:
            pytest.skip("needs s3fs and an S3 server, see docs/scale.md; AWS_ENDPOINT_URL is not set")
        store, bucket = pytest.importorskip("s3fs").S3FileSystem(), f"trt-cls-{uuid4()}"
        store.mkdir(bucket)
        store.put(f"{shards}/", f"{bucket}/", recursive=True)
        yield f"s3://{bucket}"
    else:
        yield {"folder": str(images), "tar": str(shards), "memory": "memory://set"}[request.param]


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def trained(
    trainer: Trainer, experiment: Make, shards: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, bytes]]:
    """The weights and the curve of a training on the images at `where` that is killed so often."""

    @cache
    def run(where: str, order: str, workers: int = 0, kills: int = 0) -> dict[str, bytes]:
        results, draw = tmp_path_factory.mktemp("run"), random.Random(f"{where[:5]}{workers}")
        ends = {
            part: "" if where == str(images) else f"-{{000000..{last - 1:06}}}.tar" for part, last in SHARDS.items()
        }
        paths = {f"{part}_dataset_path": f"{where}/{part}{end}" for part, end in ends.items()}
        asked = spec.show(experiment(model=MODEL, batch_size_per_gpu=4, n_workers=workers, **paths))
        given = {"spec": asked, "order": order, "cache": str(tmp_path_factory.mktemp("cache")), "memory": str(shards)}
        deaths = 0
        for _ in range(kills):
            kill_in_a_write(trainer.start(results, **given), results, draw.randint(2, 6))
            deaths += trainer.end() == -signal.SIGKILL
        assert deaths == kills
        trainer.start(results, **given)
        assert trainer.end() == 0
        return {path.name: path.read_bytes() for path in (results / "training.csv", *(results / "weights").iterdir())}

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "order", "workers"),
    [
        ("tar", "shards", 0),
        ("tar", "folder", 0),
        ("memory", "shards", 0),
        ("http", "shards", 0),
        ("http", "shards", 2),
        *[("s3", "shards", workers) for workers in (0, 1, 2, 4)],
        ("s3", "folder", 2),
    ],
    indirect=["place"],
)
def test_from_any_source_killed_and_resumed_gives_the_same_bytes(
    place: str, order: str, workers: int, trained: Callable[..., dict[str, bytes]], images: Path, shards: Path
) -> None:
    """Those of the folder in its order, else those of local shards."""
    expected = trained(str(images) if order == "folder" else str(shards), order)
    assert trained(place, order, workers, KILLS_OF_A_SOURCE) == expected


AUGMENTED = Extensions(
    random_resized_crop=RandomResizedCrop(min_scale=0.5), trivial_augment=True, repeated_augment=2, random_erasing=0.5,
    cutmix_alpha=1.0, bce_loss=True, layer_decay=0.8, warm_up_steps=7, ema_decay=0.9,
)  # fmt: skip
OPTIONS = {
    "lamb": (
        ModelConfig(arch="timm/test_vit", input_image_size="3,32,32"),
        replace(
            AUGMENTED, optimizer=ModernOptimizer(lamb=Lamb()), drop_path=0.3, gradient_checkpointing=True,
        ),
    ),
    "muon": (
        replace(MODEL, dropout=0.0),
        replace(
            AUGMENTED, optimizer=ModernOptimizer(muon=Muon()), gradient_checkpointing=True,
            progressive_resizing=ProgressiveResizing(),
        ),
    ),
    "lion": (
        replace(MODEL, dropout=0.5),
        Extensions(optimizer=ModernOptimizer(lion=Lion()), rand_augment=RandAugment(), accumulate_steps=2),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPTIONS))
def test_all_newer_options_killed_and_resumed_with_any_number_of_workers_give_the_same_bytes(
    name: str, experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    model, extensions = OPTIONS[name]
    pytest.importorskip("timm")
    common: dict[str, Any] = {"model": model, "extensions": extensions, "batch_size_per_gpu": 4, "n_epochs": 2}
    common |= {"reg_config": RegConfig(type="None"), "enable_random_crop": False, "mixup_alpha": 0.2}
    common |= {"lr_config": LrConfig(cosine=CosineLr(learning_rate=0.002))}
    asked = [spec.show(experiment(**common, n_workers=workers)) for workers in (0, 1, 4)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    draw, deaths = random.Random(5), 0
    with closing(Trainer(asked[0])) as running:
        running.start(whole)
        assert running.end() == 0
        for text in asked:
            kill_in_a_write(running.start(killed, spec=text), killed, draw.randint(2, 5))
            deaths += running.end() == -signal.SIGKILL
        running.start(killed, spec=asked[-1])
        assert running.end() == 0
    assert deaths >= 2
    for path in (whole / "training.csv", *(whole / "weights").iterdir()):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def check_logs(folder: Path) -> None:
    """Each epoch stands in them once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["status"] == "RUNNING"] == list(range(1, EPOCHS + 1))
    assert lines[-1]["status"] == "SUCCESS"
    events = EventAccumulator(str(folder / "events")).Reload()
    assert [point.step for point in events.Scalars("val_acc")] == list(range(1, EPOCHS + 1))
