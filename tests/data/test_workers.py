"""Processes that make batches: what they make arrives complete and in order; a crash is reported at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.batch_maker import make
from trt_cls.data.workers import LoaderError, Workers
from trt_cls.errors import DataError, RequestError


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    opened = Workers(make, 2, "support.batch_maker")
    yield opened
    opened.close()


def test_batches_come_in_order_and_to_the_bit(workers: Workers) -> None:
    orders = [5, 0, 40, 7, 1, 9, 2]
    for order, (images, number, skipped) in zip(orders, workers.map(orders), strict=True):
        expected = make(order)
        assert torch.equal(images, expected[0])
        assert images.dtype == torch.uint8
        assert torch.equal(number, expected[1])
        assert skipped == expected[2]


def test_an_epoch_left_in_the_midst_leaves_nothing_to_the_next(workers: Workers) -> None:
    next(workers.map([5, 4, 3, 2, 1]))
    assert [len(images) for images, _, _ in workers.map([1, 2])] == [1, 2]


def test_shared_memory_stays_empty(workers: Workers) -> None:
    before = len(os.listdir("/dev/shm"))
    list(workers.map([40, 40]))
    assert {files for _, files in workers.map(["look"] * 4)} == {before}


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (RuntimeError("torn\nlibrary"), LoaderError, r"^a loader process failed \(torn library\); expected it to the"),
        (MemoryError(), LoaderError, r"^a loader process failed \(MemoryError\); .* batch_size_per_gpu"),
        (DataError("a folder: not there"), RequestError, "^a folder: not there$"),
    ],
    ids=["error", "memory", "one of ours"],
)
def test_a_failure_is_reported_in_one_line_and_the_process_goes_on(
    raised: Exception, kind: type[Exception], message: str, workers: Workers
) -> None:
    with pytest.raises(kind, match=message) as failure:
        list(workers.map([1, raised, 2]))
    assert type(failure.value) is kind
    assert "\n" not in str(failure.value)
    assert len(list(workers.map([1, 2, 3]))) == 3


def test_a_process_that_is_killed_is_reported_at_once() -> None:
    workers = Workers(make, 1, __name__)
    list(workers.map([1]))
    started = time.monotonic()
    with pytest.raises(LoaderError, match=r"^a loader process was killed by SIGKILL; .* go on with --resume$"):
        list(workers.map([1, "die", 2]))
    assert time.monotonic() - started < 5
    workers.close()


PARENT = """
import time
from trt_cls.data.workers import Workers
if __name__ == "__main__":
    workers = Workers(abs, 2, "operator")
    list(workers.map([1, 2, 3]))
    print(*(worker.process.pid for worker in workers._started), flush=True)
    time.sleep(100)
"""


def test_no_process_outlives_the_one_that_asked_for_it(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(pid) for pid in parent.stdout.readline().split()}
        family = pids | {_parent_of(pid) for pid in pids}  # the fork server
        parent.kill()
    assert len(family) >= 2
    deadline = time.monotonic() + 20
    while any(_lives(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
