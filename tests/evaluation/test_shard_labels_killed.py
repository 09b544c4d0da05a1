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

PROCESSES = 4


@pytest.mark.slow
@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_four_processes_that_are_killed_at_random_write_what_one_does(command: str, tmp_path: Path) -> None:
    index = write_shards(image_folder(write_images(tmp_path / "images", 40)), tmp_path, "s", 20_000)
    pattern = f"{tmp_path}/s-{{000000..{len(index.shards) - 1:06}}}.tar"
    images = {"infer": "-i", "evaluate": "--dataset"}[command]
    asked = [command, "-m", str(write_onnx(tmp_path / "model.onnx")), images, pattern, "--provider", "cpu"]
    arguments = [*asked, "-o"]
    (tmp_path / "four").mkdir()
    assert main([*arguments, str(tmp_path / "one")]) == 0
    rng = random.Random(1)
    start, kills = time.monotonic(), 0
    work = [[*arguments, str(tmp_path / "four"), "--shard", f"{rank}/{PROCESSES}"] for rank in range(PROCESSES)]
    running: list[subprocess.Popen[bytes] | None] = [None] * PROCESSES
    done = [False] * PROCESSES
    while not all(done):
        for rank, process in enumerate(running):
            if process is None or process.poll() is not None:
                done[rank] = process is not None and process.returncode == 0
                if not done[rank]:
                    running[rank] = subprocess.Popen(
                        [sys.executable, "-m", "trt_cls", *work[rank]], stdout=subprocess.DEVNULL
                    )
        # random moments around the one when the first table is written
        time.sleep(rng.uniform(0, 1))
        outputs = len(list((tmp_path / "four").glob("s-*.json")))
        victim = running[rng.randrange(PROCESSES)]
        if outputs and kills < 5 and time.monotonic() - start < 40 and victim and victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            kills += 1
    assert kills
    for out in (str(tmp_path / "one"), str(tmp_path / "four")):
        merge = ["infer", "--merge", out] if command == "infer" else [*asked, "--merge", out, "-r", out]
        assert main(merge) == 0
    one, four = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "four"))
    assert one == four
