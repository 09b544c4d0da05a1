"""Hostile inputs drawn from a seed, and trainings killed at random: each call ends as the command line promises.

That is: with status 0, 1 or 2, an error on one line, no traceback, no character that moves the cursor, in time.
CAMPAIGN_SEED and CAMPAIGN_SIZE (a factor) of the environment draw others and more.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

from fuzz import hostile
from fuzz.hostile import Case, ModelFiles
from support.forked import Forked
from support.tiny_models import COLORS, CONTRACT, RGB, SIZE, write_images, write_onnx
from trt_cls.artefacts.sidecar import Profile, Sidecar, sidecar_path, write_sidecar
from trt_cls.cli import main
from trt_cls.text import FOREIGN

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAMPAIGN_SEED", "20"))
SIZE_FACTOR = float(os.environ.get("CAMPAIGN_SIZE", "1"))
LIMIT = 30
"""Seconds of one call; on a quiet core none takes two."""
KILLS = 7
"""Trainings; each is killed up to three times."""
SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{size},{size}" use_batch_norm: true }}
train_config {{
  train_dataset_path: "{data}" val_dataset_path: "{data}" pretrained_model_path: "{pretrained}"
  batch_size_per_gpu: 4 n_epochs: 4 n_workers: 0 preprocess_mode: "torch" random_seed: 5
  optimizer {{ sgd {{ momentum: 0.9 }} }} reg_config {{ type: "L2" weight_decay: 0.0001 }}
  lr_config {{ cosine {{ learning_rate: 0.05 }} }}
}}
eval_config {{ eval_dataset_path: "{data}" batch_size: 4 n_workers: 1 }}
"""


class Ended(NamedTuple):
    """How a call ended."""

    status: int | str
    """Or the traceback."""
    out: str
    err: str

    def wrong(self, several_errors: bool = False) -> str:
        """What breaks the promise; empty where nothing does."""
        if self.status not in (0, 1, 2):
            return f"ended with {self.status}"
        lines = [*self.out.split("\n"), *self.err.split("\n")]
        if raw := [line for line in lines if not line.isprintable()]:
            return f"raw on the terminal: {raw[0]!r}"
        errors = [line for line in lines if line.startswith("error: ")]
        if bool(errors) != bool(self.status) or (len(errors) > 1 and not several_errors):
            return f"status {self.status} with {len(errors)} errors: {errors[:2]}"
        if self.status and lines[-2] != errors[-1]:
            return f"the error is not the last line: {lines[-3:]}"
        return "" if "Traceback" not in self.err else "a traceback"


class TookTooLong(BaseException):
    """Nothing in the program catches it."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line in this process."""

    def call(*arguments: object) -> Ended:
        status: int | str
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            try:
                with limit(LIMIT):
                    status = main([str(word) for word in arguments])
            except BaseException:
                status = traceback.format_exc()
        out, err = capfd.readouterr()
        if warned:
            status = f"a warning: {warned[0].message} ({warned[0].filename}:{warned[0].lineno})"
        return Ended(status, out, err)

    return call


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A network of one product as ONNX, with a sidecar of an engine; a resnet of eight channels as a checkpoint."""
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint, widths

    root = tmp_path_factory.mktemp("sound")
    onnx = write_onnx(root / "m.onnx").read_bytes()
    layers = widths(build(CONTRACT.model, 3).state_dict())
    narrow = {name: 3 if name == "predictions" else 8 for name in layers}
    model = replace(CONTRACT.model, use_batch_norm=True)
    save_checkpoint(root / "m.safetensors", build(model, 3, narrow), replace(CONTRACT, model=model))
    (root / "m.engine").write_bytes(onnx)
    side = Sidecar(CONTRACT, "0" * 64, "tensorrt", "10.3", ("8.9",), "GPU", Profile(1, 8, 32), "m.onnx", "0" * 64)
    write_sidecar(root / "m.engine", side)
    text = sidecar_path(root / "m.engine").read_text()
    checkpoint = (root / "m.safetensors").read_bytes()
    return ModelFiles(onnx, checkpoint, onnx, text, json.loads(CONTRACT.to_json()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images and a spec."""
    write_images(tmp_path / "data", 2)
    (tmp_path / "good.txt").write_text(SPEC.format(size=SIZE, data="data", pretrained=""))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted(count: int) -> int:
    return max(1, round(count * SIZE_FACTOR))


def judge(run: Run, cases: Iterator[Case], calls: Callable[[Case], list[list[str]]], folder: Path) -> Counter[Any]:
    """Writes each case's file, makes its calls and returns how often each status was; fails with all that is wrong."""
    wrong, statuses = [], Counter[Any]()
    for number, case in enumerate(cases):
        (folder / case.name).write_bytes(case.content)
        for arguments in calls(case):
            ended = run(*arguments)
            statuses[arguments[0], ended.status] += 1
            if found := ended.wrong(several_errors="spec" in arguments[0] or "-e" in arguments):
                wrong.append(f"seed {SEED}, case {number} ({case.done}), {' '.join(arguments)}: {found}")
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())} calls; seed {SEED}\n" + "\n".join(wrong[:5])
    return statuses


def test_specs(run: Run, folder: Path) -> None:
    root = Path(__file__).parents[1]
    texts = [path.read_text() for path in sorted((root / "specs").glob("*.txt"))] + [(folder / "good.txt").read_text()]
    texts.append((root / "tests/reference/tao-spec.txt").read_text())
    cases = hostile.specs(random.Random(SEED), texts, counted(1600))
    statuses = judge(run, cases, lambda case: [["spec", "check", case.name]], folder)
    assert statuses["spec", 2] > 3 * statuses["spec", 0] > 0


def test_model_files(run: Run, folder: Path, sound: ModelFiles) -> None:
    draw = random.Random(SEED)
    (folder / "m.engine").write_bytes(sound.plan)

    def calls(case: Case) -> list[list[str]]:
        name = case.name.removesuffix(".json")
        made = [["inspect", name, *draw.choice([[], ["--json"], ["--layers"]])]]
        made.append(
            ["infer", "-m", name, "-i", "data", "-r", "results", "--provider", "cpu"][: 7 if "engine" in name else 9]
        )
        if name.endswith(".safetensors"):
            made.append(["prune", "-m", name, "--dry-run", "--target-flops", "0.5"])
        if draw.random() < 0.2:
            made.append(["evaluate", "-e", "good.txt", "-m", name, "-r", "results"])
        if draw.random() < 0.1 and "engine" not in name:
            made.append(["export", "-m", name, "-o", "out.onnx", "--builder", "none", "--images", "data"])
        return made

    cases = hostile.artefacts(draw, sound, counted(1000))
    statuses = judge(run, cases, calls, folder)
    assert statuses["inspect", 2] > statuses["inspect", 0] > 0
    assert statuses["infer", 0] > 0


def test_images(run: Run, folder: Path, sound: ModelFiles) -> None:
    """They are labeled or skipped with a reason, each once; good ones beside them keep their answers."""
    (folder / "m.onnx").write_bytes(sound.onnx)
    arguments = ["infer", "-m", "m.onnx", "-i", "data", "-r", "results", "--provider", "cpu"]
    assert run(*arguments).status == 0
    good = set(labels(folder / "results/result.csv"))
    hostile.write_pipes(folder / "data" / "red")
    cases = list(hostile.images(random.Random(SEED), counted(1000)))
    for number, case in enumerate(cases):
        (folder / "data" / list(COLORS)[number % 3] / case.name).write_bytes(case.content)
    ended = run(*arguments)
    assert ended.wrong() == "", f"seed {SEED}"
    rows = labels(folder / "results/result.csv")
    skipped = [
        line.removeprefix("skipped: ").split(": ")[0] for line in ended.err.split("\n") if line.startswith("skipped: ")
    ]
    expected = Counter(str(path.relative_to(folder)) for path in folder.glob("data/*/*"))
    assert Counter([path for path, *_ in rows] + skipped) == expected, f"seed {SEED}"
    assert good <= set(rows), f"seed {SEED}"
    assert len(cases) / 4 < len(skipped) < len(cases)


def labels(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8", errors=FOREIGN) as file:
        return [tuple(row) for row in csv.reader(file)]


@pytest.mark.parametrize("take", range(6))
def test_names(run: Run, folder: Path, take: int) -> None:
    """Of classes and of files, through labels, reports and configurations: refused, or whole in every file."""
    draw = random.Random(SEED + take)
    classes = sorted(os.fsdecode(name) for name in draw.sample(hostile.NAMES, 4))
    files = [os.fsdecode(name + b".png") for name in draw.sample(hostile.NAMES, 8)]
    for number, name in enumerate(classes):
        (folder / "named" / name).mkdir(parents=True)
        for file in files:
            (folder / "named" / name / file).write_bytes(hostile.plain_picture((60 * number, 9, 200)))
    sound_names = [name if name.isprintable() else f"class {number}" for number, name in enumerate(classes)]
    write_onnx(folder / "m.onnx", replace(CONTRACT, preprocessing=RGB))
    (folder / "named.txt").write_text(SPEC.format(size=SIZE, data="named", pretrained=""))
    infer = ["infer", "-m", "m.onnx", "-i", "named", "-r", "results", "--provider", "cpu"]
    for more in ([], ["--format", "jsonl"]):
        ended = run(*infer, *more)
        assert (ended.wrong(), ended.status) == ("", 0), f"seed {SEED}"
    written = {Path(path) for path, *_ in labels(folder / "results/result.csv")}
    paths = {path.relative_to(folder) for path in folder.glob("named/*/*")}
    assert written == paths, f"seed {SEED}"
    lines = (folder / "results/result.jsonl").read_text(encoding="utf-8", errors=FOREIGN).split("\n")
    assert {Path(json.loads(line)["path"]) for line in lines if line} == paths, f"seed {SEED}"
    for arguments in (
        ["evaluate", "-e", "named.txt", "-m", "m.onnx", "-r", "results"],
        ["train", "-e", "named.txt", "-r", "trained", "--device", "cpu", "--set", "train_config.n_epochs=1"],
        ["inspect", "trained/weights/best.safetensors"],
        ["evaluate", "-e", "named.txt", "-m", "trained/weights/best.safetensors", "-r", "results"],
    ):
        ended = run(*arguments)
        assert ended.wrong(several_errors=True) == "", f"seed {SEED}, {sound_names}: {arguments}"
    assert not list(folder.rglob("OWNED"))


@pytest.fixture
def start(folder: Path, sound: ModelFiles, forked: Forked) -> Callable[[Path], int]:
    """Begins a training, or goes on with the one whose state is there; returns the process's number."""
    (folder / "narrow.safetensors").write_bytes(sound.checkpoint)
    text = SPEC.format(size=SIZE, data=folder / "data", pretrained=folder / "narrow.safetensors")
    (folder / "spec.txt").write_text(text)

    def begin(results: Path) -> int:
        resume = ["--resume"] * (results / "train_state.pt").exists()
        arguments = ["train", "-e", folder / "spec.txt", "-r", results, "--device", "cpu", "--save-every", "1", *resume]
        return forked.start(arguments, output=f"{results}.log", errors=f"{results}.log")

    return begin


def test_trainings_that_are_killed_end_as_one_that_was_not(
    start: Callable[[Path], int], forked: Forked, folder: Path
) -> None:
    """By any of four signals, one to three times each; after each, no file of a final name is half written."""
    draw = random.Random(SEED)
    assert forked.wait(start(folder / "whole")) == 0, (folder / "whole.log").read_text()
    expected = written(folder / "whole")
    assert len(expected) == 4 + 1 + 2
    statuses: Counter[tuple[str, int]] = Counter()
    for number in range(counted(KILLS)):
        results, history = folder / f"training{number}", []
        for _ in range(draw.choice([1, 1, 2, 3])):
            name = draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
            process = start(results)
            if runs_until_saved(process, results, draw.randrange(6)):
                time.sleep(draw.uniform(0, 0.02))
                os.kill(process, getattr(signal, name))
            status = forked.wait(process)
            history.append(f"{name} → {status}")
            statuses[name, status] += 1
            assert half_written(results) == [], f"seed {SEED}, training {number}: {history}"
            if status in (0, 2):
                break
        if status not in (0, 2):
            status = forked.wait(start(results))
        said = (folder / f"training{number}.log").read_text()
        assert status == 0 or "nothing to resume" in said, f"seed {SEED}, training {number}: {history}\n{said[-500:]}"
        assert "Traceback" not in said, f"seed {SEED}, training {number}: {history}\n{said[-500:]}"
        assert written(results) == expected, f"seed {SEED}, training {number}: {history}"
        shutil.rmtree(results)
    assert sum(count for (_, status), count in statuses.items() if status not in (0, 2)) >= counted(KILLS) / 3, statuses


def runs_until_saved(process: int, results: Path, times: int) -> bool:
    """Waits until the state was saved so often since now; whether the process still runs then."""
    state, seen = results / "train_state.pt", set()
    with contextlib.suppress(OSError):
        seen.add(state.stat().st_mtime_ns)
    wanted = len(seen) + times
    while Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        with contextlib.suppress(OSError):
            seen.add(state.stat().st_mtime_ns)
        if len(seen) >= wanted:
            return True
        time.sleep(0.001)
    return False


def written(results: Path) -> dict[str, bytes]:
    """What a resumed training has to write to the byte."""
    names = ["training.csv", "classmap.json", *(f"weights/{path.name}" for path in results.glob("weights/*"))]
    return {name: (results / name).read_bytes() for name in names if not Path(name).name.startswith(".")}


def texts(path: Path) -> list[str]:
    """The JSON texts of a file: status.json has one on each line."""
    return path.read_text().splitlines() if path.name == "status.json" else [path.read_text()]


def half_written(results: Path) -> list[str]:
    """Files of a final name that can't be read."""
    import torch
    from safetensors.torch import load_file

    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".json": lambda path: [json.loads(text) for text in texts(path)],
        ".csv": lambda path: {len(row) for row in csv.reader(io.StringIO(path.read_text()))} or 1 / 0,
    }
    found = []
    for path in results.rglob("[!.]*.*"):
        try:
            readers.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:
            found.append(f"{path.name}: {error}")
    return found
