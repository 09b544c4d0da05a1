"""What each process takes of the work and of the machine; how they end together is tested with the commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_cls.distributed import launch
from trt_cls.distributed.processes import ALONE, Processes, _start, joined
from trt_cls.errors import DeviceError


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 9))
def test_shares_are_the_batches_of_one_process(count: int, batch_size: int, size: int) -> None:
    items = range(count)
    shares = [Processes(rank, size).share(items, batch_size) for rank in range(size)]
    of_one = [list(items[start : start + batch_size]) for start in range(0, count, batch_size)]
    of_each = [
        list(share[start : start + batch_size]) for share in shares for start in range(0, len(share), batch_size)
    ]
    assert of_each == of_one
    batches = [-(-len(share) // batch_size) for share in shares]
    assert max(batches) - min(batches) <= 1
    assert batches[0] == max(batches)


def test_a_process_alone_has_it_all_and_waits_for_nobody() -> None:
    assert ALONE.share([1, 2, 3], 2) == [1, 2, 3]
    assert ALONE.gather("value") == ["value"]
    assert ALONE.from_first(lambda: 7) == 7
    assert ALONE.threads is None
    ALONE.wait()


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(advice="") as processes:
        assert processes == ALONE


def test_processes_share_the_cores_of_their_machine() -> None:
    cores = len(os.sched_getaffinity(0))
    assert Processes(0, 4, per_machine=1).threads == cores
    assert Processes(0, 2 * cores, per_machine=2 * cores).threads == 1


TWO = Processes(rank=3, size=4, per_machine=2, rank_on_machine=1)


@pytest.mark.parametrize(
    ("visible", "left"),
    [(None, "1"), ("4,6,7", "6"), ("GPU-8932f937, GPU-a1b2c3d4", "GPU-a1b2c3d4")],
    ids=["all", "numbers", "names"],
)
def test_each_process_is_left_one_of_the_visible_gpus(
    visible: str | None, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpus_found", lambda: 3)
    monkeypatch.delenv(launch.VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(launch.VISIBLE, visible)
    launch.take_gpu(TWO, required=True, otherwise="")
    assert os.environ[launch.VISIBLE] == left


def test_a_process_alone_keeps_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.VISIBLE, "1,2")
    launch.take_gpu(ALONE, required=True, otherwise="")
    assert os.environ[launch.VISIBLE] == "1,2"


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus_found", lambda: 1)
    with pytest.raises(DeviceError, match=r"^2 processes on this machine, where torch finds 1 GPUs; .* use a CPU$"):
        launch.take_gpu(TWO, required=False, otherwise="use a CPU")
    launch.take_gpu(replace(TWO, per_machine=1, rank_on_machine=0), required=False, otherwise="")


def test_a_machine_without_gpus_is_refused_only_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus_found", lambda: 0)
    monkeypatch.delenv(launch.VISIBLE, raising=False)
    launch.take_gpu(TWO, required=False, otherwise="")
    assert launch.VISIBLE not in os.environ
    with pytest.raises(DeviceError, match="2 processes on this machine, where torch finds 0 GPUs"):
        launch.take_gpu(TWO, required=True, otherwise="")


LAUNCHER = '''
import os, subprocess, sys
child = """
import time
from trt_cls.distributed.failure import end_with_launcher
end_with_launcher()
print("watching", flush=True)
time.sleep(99)
"""
environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1"}
started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, env=environment)
assert started.stdout.readline().strip() == b"watching"
print(started.pid, flush=True)
started.wait()
'''


def test_a_process_ends_with_the_launcher_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = Path("/proc") / launcher.stdout.readline().strip() / "stat"
        launcher.kill()
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_that_are_started_again_do_not_take_the_keys_of_those_before() -> None:
    """torchrun keeps its store."""
    store = pytest.importorskip("torch.distributed").HashStore()
    with ThreadPoolExecutor(3) as pool:
        names = [set(pool.map(lambda rank: _start(store, rank, 3), (0, 2, 1))) for _ in range(3)]
    assert [len(of_one_start) for of_one_start in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


def test_a_sigterm_that_no_block_sees_ends_the_process_silently() -> None:
    code = (
        "import os, signal; from trt_cls.distributed import failure\n"
        "signal.signal(signal.SIGTERM, failure._raise)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")
