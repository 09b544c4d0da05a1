"""`infer -o` and `evaluate -o` in four processes that are killed at random moments until all is done."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.tiny_models import write_images, write_onnx
from trt_cls.cli import main
from trt_cls.data.folder import image_folder
from trt_cls.data.shard_writer import write_shards

PROCESSES, KILLS = 4, 8


@pytest.mark.slow
@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_four_processes_that_are_killed_at_random_write_what_one_does(command: str, tmp_path: Path) -> None:
    index = write_shards(image_folder(write_images(tmp_path / "images", 40)), tmp_path, "s", 20_000)
    pattern = f"{tmp_path}/s-{{000000..{len(index.shards) - 1:06}}}.tar"
    images = {"infer": "-i", "evaluate": "--dataset"}[command]
    asked = [command, "-m", str(write_onnx(tmp_path / "model.onnx")), images, pattern, "--provider", "cpu"]
    arguments = [*asked, "-o"]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "trt_cls", *arguments, str(tmp_path / "one")], check=True)
    usual = time.monotonic() - start
    rng, kills = random.Random(1), 0
    work = [[*arguments, str(tmp_path / "four"), "--shard", f"{rank}/{PROCESSES}"] for rank in range(PROCESSES)]
    running: list[subprocess.Popen[bytes] | None] = [None] * PROCESSES
    ends = [0.0] * PROCESSES
    while any(process is None or process.poll() != 0 for process in running):
        for rank, process in enumerate(running):
            if process is None or process.poll() not in (None, 0):
                command_line = [sys.executable, "-m", "trt_cls", *work[rank]]
                running[rank] = subprocess.Popen(command_line, stdout=subprocess.DEVNULL)
                # until after the time of one process alone: four on few cores take longer
                ends[rank] = time.monotonic() + rng.uniform(0.5, 2) * usual
            elif kills < KILLS and time.monotonic() > ends[rank] and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        time.sleep(0.01)
    assert kills
    for out in (str(tmp_path / "one"), str(tmp_path / "four")):
        merge = ["infer", "--merge", out] if command == "infer" else [*asked, "--merge", out, "-r", out]
        assert main(merge) == 0
    one, four = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "four"))
    assert one == four
