"""torchrun starts all processes again when one was killed, and the training ends as one that was left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import Forked
from trt_cls import spec
from trt_cls.cli import main
from trt_cls.spec.experiment import Experiment

Make = Callable[..., Experiment]
PROGRAM = Path(__file__).with_name("elastic_program.py")


def children(process: int) -> list[int]:
    """The numbers of a process's children, in the order of their start."""
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def has_ended(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def rows(results: Path) -> int:
    table = results / "training.csv"
    return table.read_text().count("\n") - 1 if table.exists() else 0


@pytest.mark.slow
def test_killed_processes_are_started_again_and_the_weights_are_the_same(
    experiment: Make, forked: Forked, tmp_path: Path
) -> None:
    file, one, two = tmp_path / "spec.txt", tmp_path / "one", tmp_path / "two"
    file.write_text(spec.show(experiment(batch_size_per_gpu=4, n_epochs=6)))
    narrow = {"NARROW": "1"}
    alone = forked.run(2, ["train", "-e", file, "-r", one, "--device", "cpu"], environment=narrow)
    assert alone.returncode == 0, alone.stderr
    asked = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "--monitor-interval", "0.02"]
    train = ["-m", "trt_cls", "train", "-e", file, "-r", two, "--device", "cpu", "--auto-resume", "--save-every", "1"]
    errors = tmp_path / "errors"
    torchrun = forked.start([*asked, *train], PROGRAM, environment=narrow, errors=str(errors))
    killed: set[int] = set()
    for done, rank in ((1, 1), (3, 0)):
        while rows(two) < done or len(started := children(torchrun)) < 2 or killed & set(started):
            assert not has_ended(torchrun), errors.read_text()
            time.sleep(0.01)
        killed = set(started)
        os.kill(started[rank], signal.SIGKILL)
    assert forked.wait(torchrun) == 0, errors.read_text()
    compared = ["training.csv", *(f"weights/{path.name}" for path in (one / "weights").iterdir())]
    assert len(compared) > 6
    assert (two / "status.json").read_text().count("training resumed at epoch") == 2
    assert [name for name in compared if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_auto_resume_begins_where_there_is_no_training_and_goes_on_where_there_is_one(
    experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("trt_cls.training.run.train", lambda *_, resume, **__: asked.append(resume))
    monkeypatch.setattr("trt_cls.cli.train._summary", lambda result: [])
    (tmp_path / "spec.txt").write_text(spec.show(experiment()))
    command = ["train", "-e", str(tmp_path / "spec.txt"), "-r", str(tmp_path)]
    assert main([*command, "--auto-resume"]) == 0
    (tmp_path / "train_state.pt").touch()
    assert main([*command, "--auto-resume"]) == main(command) == main([*command, "--auto-resume", "--resume"]) == 0
    assert asked == [False, True, False, True]
    assert main([*command, "--auto-resume", "--find-lr"]) == 2
