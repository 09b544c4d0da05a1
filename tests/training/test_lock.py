"""A results folder has one writer; who is kept out learns by whom, and the dead keep nobody out."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_cls.errors import RequestError
from trt_cls.spec.experiment import Experiment
from trt_cls.training.run import train
from trt_cls.training.run_folder import only_writer


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    named = rf"process {os.getpid()} on {socket.gethostname()} trains in this folder; .*kill {os.getpid()}"
    with only_writer(tmp_path):
        for _ in range(2):
            with pytest.raises(RequestError, match=named), only_writer(tmp_path):
                pass
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "1 elsewhere\n", "\x1b[31m" * 99])
def test_the_lock_of_a_process_that_died_does_not_count(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.lock").write_text(content)
    with only_writer(tmp_path):
        pass


def test_a_holder_that_left_no_name_is_another_process(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        (tmp_path / "training.lock").write_text("\x1b[31m not a name")
        with pytest.raises(RequestError, match="another process trains in this folder"), only_writer(tmp_path):
            pass


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with only_writer(tmp_path):
        assert "its file system has no locks (No locks available): nothing keeps a second" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("resume", [False, True])
def test_a_training_beside_a_running_one_is_refused(
    resume: bool, experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    refused = []

    def second() -> None:
        with pytest.raises(RequestError) as refusal:
            train(experiment(), tmp_path, device="cpu", reporter=quiet(), resume=resume)
        refused.append(str(refusal.value))

    train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=quiet(1, 2, second))
    assert f"process {os.getpid()} on " in refused[0]
    assert not (tmp_path / "training.lock").exists()
