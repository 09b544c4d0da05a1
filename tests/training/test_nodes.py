"""Two machines of torchrun, both of them this one: the training of as many processes on one machine."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import Forked
from trt_cls import spec
from trt_cls.spec.experiment import Experiment

Make = Callable[..., Experiment]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def start(options: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    """`torchrun OPTIONS … train ARGUMENTS`."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "trt_cls", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    ends = [process.communicate(timeout=200) for process in started]
    return [(process.returncode, *end) for process, end in zip(started, ends, strict=True)]


def wait_for(path: Path, started: list[subprocess.Popen[str]]) -> None:
    while not path.exists():
        assert all(process.poll() is None for process in started), finished(started)
        time.sleep(0.02)


@pytest.mark.slow
def test_two_machines_train_as_two_processes_of_one(experiment: Make, forked: Forked, tmp_path: Path) -> None:
    """Also where they are interrupted, and both go on with the command that is printed."""
    file = tmp_path / "spec.txt"
    file.write_text(spec.show(experiment(batch_size_per_gpu=4, n_epochs=8)))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = forked.run(2, ["train", "-e", file, "-r", one, "--device", "cpu"])
    assert alone.returncode == 0, alone.stderr

    meeting = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    nodes = [start([*meeting, "--node-rank", str(rank)], ["-e", str(file), "-r", str(two)]) for rank in range(2)]
    wait_for(two / "training.csv", nodes)
    nodes[1].send_signal(signal.SIGINT)
    ends = finished(nodes)
    (reported,) = [line for end in ends for line in end[2].splitlines() if line.startswith("error: ")]
    resume = shlex.split(reported.split("go on with: ")[1])
    assert resume[:4] == ["torchrun", "--nnodes", "2", "--rdzv-backend"]

    command = resume.index("-m")
    endpoint = f"127.0.0.1:{free_port()}"  # the default port may be taken by another test
    options = [option if not option.startswith("127.0.0.1:") else endpoint for option in resume[1:command]]
    first, second = finished([start(options, resume[command + 3 :]) for _ in range(2)])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert sorted(bool(end[1]) for end in (first, second)) == [False, True]  # one speaks
    for name in ("training.csv", "weights/resnet_008.safetensors", "weights/best.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
