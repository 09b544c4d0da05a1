from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny_models import write_images, write_onnx
from trt_cls.cli.processes import progress


def test_says_nothing_where_nobody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10) as done:
        done(4)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_how_far_it_is_and_stdout_stays_clean(tmp_path: Path) -> None:
    """A run on a terminal of its own: the bar goes to stderr, counts the skipped image too, and ends at all of them."""
    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 30)
    (images / "broken.jpg").write_text("text")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trt_cls", "infer", "-m", str(model), "-i", str(images), "-b", "10"]
    command += ["-r", str(tmp_path / "results")]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "/91" in shown
    assert "91/91" in shown
    assert done.stdout.decode().startswith("90 images labeled, 1 skipped")
