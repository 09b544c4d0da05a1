"""`trt-cls evaluate` and `infer` in several processes: the words and files of one, one error, one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.forked import Forked
from support.tiny_models import COLORS, CONTRACT, RGB, SIZE, write_onnx
from trt_cls.cli import main
from trt_cls.cli.processes import _arguments_of_each
from trt_cls.distributed.processes import Processes
from trt_cls.isolation import MAIN_CODE as IN_PROCESS

SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{size},{size}" use_batch_norm: true }}
eval_config {{ eval_dataset_path: "{data}" model_path: "{model}" batch_size: 4 n_workers: 2 top_k: 2 }}
"""
PROGRAM = ["-m", "trt_cls"]
SLOW = [str(Path(__file__).with_name("slow_program.py"))]
LAUNCHER = "import sys; from trt_cls.distributed.launch import run_in_processes as run; sys.exit(run(2, sys.argv[1:]))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """spec.txt, model.onnx and data/ with 31 images, two of them broken."""
    root = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(5)
    for name, count in zip(COLORS, (11, 10, 10), strict=True):
        (root / "data" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{number:02d}.jpg")
    half = root / "data" / "green" / "03.jpg"
    half.write_bytes(half.read_bytes()[:400])
    (root / "data" / "red" / "10.jpg").write_text("not a picture")
    write_onnx(root / "model.onnx", replace(CONTRACT, preprocessing=replace(RGB, crop="center")))
    (root / "spec.txt").write_text(SPEC.format(size=SIZE, data=root / "data", model=root / "model.onnx"))
    return root


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def results(folder: Path) -> dict[str, Any]:
    """results.json but for what the clock says."""
    content: dict[str, Any] = json.loads((folder / "results" / "results.json").read_text())
    assert content.pop("images_per_second") > 0
    seconds = content.pop("seconds")
    assert seconds["total"] == pytest.approx(seconds["waiting_for_data"] + seconds["inference"])
    assert min(seconds.values()) >= 0
    return content


def words(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("images/s")]


@pytest.mark.slow
def test_processes_measure_what_one_measures(folder: Path, forked: Forked, tmp_path: Path) -> None:
    """Three, which 31 images in batches of four do not come out even for."""
    command = ["evaluate", "-e", str(folder / "spec.txt"), "-r", "results", "-k", "key"]
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    one = forked.run(1, command, folder=str(tmp_path / "one"))
    several = forked.run(3, command, folder=str(tmp_path / "several"))
    assert (one.returncode, several.returncode) == (0, 0), one.stderr + several.stderr
    assert words(several.stdout) == words(one.stdout)
    assert [line.split(":")[0] for line in one.stderr.splitlines()[1:]] == ["skipped", "skipped"]
    assert several.stderr == one.stderr
    assert results(tmp_path / "several") == results(tmp_path / "one")
    predictions = "results/predictions.csv"
    assert (tmp_path / "several" / predictions).read_bytes() == (tmp_path / "one" / predictions).read_bytes()


@pytest.mark.slow
def test_the_first_process_reads_the_list_for_all(folder: Path, forked: Forked, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"\xe9.jpg")
    strange.write_bytes((folder / "data" / "blue" / "00.jpg").read_bytes())
    paths = [*sorted((folder / "data").rglob("*.jpg"), reverse=True), strange, strange]
    typed = b"\n".join(os.fsencode(path) for path in paths)
    command = ["infer", "-m", folder / "model.onnx", "-i", "-", "-b", "4"]
    one, three = (forked.run(processes, command, typed=typed) for processes in (1, 3))
    assert three.returncode == 0, three.stderr
    assert len(one.stdout.splitlines()) == len(paths) - 2
    assert (three.stdout, three.stderr) == (one.stdout, one.stderr)


@pytest.mark.slow
def test_processes_without_an_image_wait_for_the_others(folder: Path, forked: Forked, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes((folder / "data" / "blue" / "00.jpg").read_bytes())
    done = forked.run(3, ["infer", "-m", folder / "model.onnx", "-i", images, "-r", images / "labels"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 images labeled, 0 skipped; written: {images / 'labels/result.csv'}\n"


def truncated(folder: Path, tmp_path: Path) -> list[str]:
    model = tmp_path / "model.onnx"
    model.write_bytes((folder / "model.onnx").read_bytes()[:300])
    return ["evaluate", "-e", str(folder / "spec.txt"), "-m", str(model)]


def strict(folder: Path, tmp_path: Path) -> list[str]:
    return ["evaluate", "-e", str(folder / "spec.txt"), "--strict"]


def nothing_decoded(folder: Path, tmp_path: Path) -> list[str]:
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_text("not a picture")
    return ["infer", "-m", str(folder / "model.onnx"), "-i", str(tmp_path), "-b", "4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (truncated, "model.onnx: is truncated"),
        (strict, "2 images can't be decoded, the first is "),
        (nothing_decoded, "none of 9 images can be decoded"),
    ],
)
def test_one_error_ends_all_with_its_status(
    request_of: Any, message: str, folder: Path, forked: Forked, tmp_path: Path
) -> None:
    asked = request_of(folder, tmp_path)
    done: Any
    if request_of is strict:
        command = [sys.executable, "-c", LAUNCHER, *PROGRAM, *asked]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    else:
        done = forked.run(2, asked)
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("skipped: ")]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_ends_all_with_one_line(number: int, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAUNCHER, *SLOW, "evaluate", "-e", str(folder / "spec.txt")]
    started = subprocess.Popen(
        command, env=environment(MARK=str(tmp_path / "asked")), stderr=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("asked.*"))) < 2:
        assert started.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    killed = number == signal.SIGKILL
    os.kill(int(children[-1]) if killed else started.pid, number)
    _, errors = started.communicate(timeout=50)
    (error,) = [line for line in errors.splitlines() if line]
    assert started.returncode == (1 if killed else 130)
    assert ("another one ended without an error" if killed else "error: interrupted") in error


@pytest.mark.parametrize("words", [["--gpus", "2"], ["--gpus=2"], ["-k", "KEY"], ["--key=KEY"]])
def test_each_process_gets_the_arguments_without_gpus_and_key(words: list[str]) -> None:
    assert _arguments_of_each(["train", *words, "--resume"]) == ["train", "--resume"]


@pytest.mark.parametrize("command", ["evaluate", "infer"])
def test_gpus_starts_the_same_call_once_for_each(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, list[str]]] = []
    monkeypatch.setattr("trt_cls.distributed.launch.require_gpus", lambda count, otherwise: None)
    monkeypatch.setattr("trt_cls.distributed.launch.run_in_processes", lambda *call: calls.append(call) or 3)
    source = ["-i", "-"] if command == "infer" else ["--strict"]
    typed = ["-e", str(folder / "spec.txt"), "-m", "model.onnx", "--gpus", "2", "-b", "3", "-v", *source]
    with pytest.raises(SystemExit) as ending:
        main([command, *typed, "--set", "eval_config.top_k=1"])
    assert ending.value.code == 3
    ((count, arguments),) = calls
    without = [word for word in typed if word not in ("--gpus", "2")]
    assert count == 2
    assert arguments == ["-c", IN_PROCESS, command, *without, "--set", "eval_config.top_k=1"]


@pytest.mark.parametrize(
    ("provider", "status", "message"),
    [
        ("auto", 1, "error: --gpus 64: torch finds "),
        ("cpu", 2, "error: --gpus 64 with --provider cpu; "),
        ("openvino", 2, "error: --gpus 64 with --provider openvino; "),
    ],
)
def test_gpus_that_can_not_be_are_refused(
    provider: str, status: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "-e", str(folder / "spec.txt"), "--gpus", "64", "--provider", provider]
    assert main(arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert "torchrun --nproc-per-node 64 -m trt_cls evaluate … --provider cpu" in line


def test_a_video_is_not_shared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = Processes(0, 2, per_machine=2)
    monkeypatch.setattr("trt_cls.distributed.processes.joined", lambda **_: nullcontext(two))
    arguments = ["infer", "-m", str(folder / "model.onnx"), "--provider", "cpu", "-i", "video.mp4"]
    assert main(arguments) == 2
    assert "2 processes were started; expected one" in capsys.readouterr().err


def test_several_processes_need_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["infer", "-m", str(folder / "model.onnx"), "-i", str(folder / "data")]) == 1
    assert "working in several processes needs the package torch" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_flag_that_is_not_there_is_reported_once(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert main(["evaluate", "-e", "spec.txt", "--no-such-flag"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines
