"""Four processes that label 200 shards of 500 images and are killed with SIGKILL at random moments, against one.

Stops with an error unless all output files are equal to the byte and `infer --merge` finds each image once. Results:
results/exactly_once.csv. Usage: python benchmarks/exactly_once.py
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from _results import about, write
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from support.tiny_models import COLORS, SIZE, write_onnx  # noqa: E402
from trt_cls.data.folder import image_folder  # noqa: E402
from trt_cls.data.shard_writer import write_shards  # noqa: E402

SHARDS, EACH, PROCESSES = int(os.environ.get("SHARDS", 200)), 500, 4
ROOM = 7 * 512 * EACH + 1024
"""Bytes of a shard: of an image a header and two blocks, and as much for its class and path together and its end."""
PAUSE = 20.0
"""Most seconds between two kills."""


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(SHARDS * EACH):
        name, color = list(COLORS.items())[number % len(COLORS)]
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3)) // 2 + np.array(color) // 2
        content = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(content, "jpeg", quality=50)
        assert 512 < len(content.getvalue()) <= 1024
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:06}.jpg").write_bytes(content.getvalue())


def killed_until_done(command: list[str]) -> tuple[int, int]:
    """Runs a share in each process, and again when it was killed; returns how often one was killed and started."""
    rng, kills, starts = random.Random(1), 0, 0
    left: dict[int, subprocess.Popen[bytes] | None] = dict.fromkeys(range(PROCESSES))
    while left:
        for rank, process in list(left.items()):
            if process is None or process.poll() is not None:
                if process is not None and process.returncode == 0:
                    del left[rank]
                    continue
                shard = ["--shard", f"{rank}/{PROCESSES}"]
                left[rank] = subprocess.Popen([*command, *shard], stdout=subprocess.DEVNULL)
                starts += 1
        time.sleep(rng.uniform(0, PAUSE))
        victim = left.get(rng.randrange(PROCESSES))
        if victim and victim.poll() is None:
            victim.kill()
            victim.wait()
            kills += 1
    return kills, starts


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        index = write_shards(image_folder(folder / "images"), folder, "s", ROOM)
        assert [shard.samples for shard in index.shards] == [EACH] * SHARDS
        model, shards = write_onnx(folder / "model.onnx"), f"{folder}/s-{{000000..{SHARDS - 1:06}}}.tar"
        trt_cls = [sys.executable, "-m", "trt_cls", "infer"]
        command = [*trt_cls, "-m", str(model), "-i", shards, "--provider", "cpu", "-o"]
        start = time.perf_counter()
        subprocess.run([*command, str(folder / "one")], check=True, stdout=subprocess.DEVNULL)
        undisturbed = time.perf_counter() - start
        kills, starts = killed_until_done([*command, str(folder / "four")])
        seconds = time.perf_counter() - start - undisturbed
        for out in ("one", "four"):
            subprocess.run([*trt_cls, "--merge", str(folder / out)], check=True)
        one, four = ({path.name: path.read_bytes() for path in (folder / out).iterdir()} for out in ("one", "four"))
        assert one == four
        row = {"shards": SHARDS, "images": SHARDS * EACH, "processes": PROCESSES, "kills": kills, "starts": starts}
        times = {"seconds": round(seconds), "undisturbed_seconds": round(undisturbed), "equal_files": len(four)}
    write("exactly_once", [row | times | about(["numpy", "onnxruntime"])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
