"""Trains from a folder, from shards, and from shards in S3 with 0, 1, 2 and 4 loader processes, killed and resumed.

Prints the SHA-256 of all weights of each training; fails where two that should be equal differ. Needs s3fs, and a
server in an environment of its own, because its botocore is not that of s3fs:

    python -m venv /tmp/moto && /tmp/moto/bin/pip install "moto[server,s3]"
    /tmp/moto/bin/moto_server -H 127.0.0.1 -p 5555 &
    AWS_ENDPOINT_URL=http://127.0.0.1:5555 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-east-1 \\
        python tests/training/stores_by_hand.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from trt_cls.cli import main as cli

KILLS = 2
SPEC = """model_config {{ arch: "squeezenet" input_image_size: "3,32,32" retain_head: true dropout: 0.5 }}
train_config {{
  train_dataset_path: "{train}" val_dataset_path: "{val}" n_workers: {workers} batch_size_per_gpu: 8 n_epochs: 2
  random_seed: 7 optimizer {{ sgd {{ momentum: 0.9 }} }} reg_config {{ type: "L2" weight_decay: 1e-4 }}
  lr_config {{ cosine {{ learning_rate: 0.01 soft_start: 0.2 }} }}
}}
"""
PROGRAM = """import sys
from pathlib import Path
from trt_cls import spec
from trt_cls.training.run import train
train(spec.load(Path(sys.argv[1])), Path(sys.argv[2]), resume=sys.argv[3] == "1", device="cpu", save_every=1,
      order=sys.argv[4] if sys.argv[3] == "0" else None)
"""


def write_pictures(root: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 6)):
        for label in range(3):
            (root / part / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 200, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / str(label) / f"{index}.png")


def sha256(results: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((results / "weights").iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def trained(root: Path, name: str, spec: str, order: str, kills: int) -> str:
    """The digest of a training that is killed at random moments behind its first saved step."""
    (root / f"{name}.txt").write_text(spec)
    results, rng = root / name, random.Random(name)
    results.mkdir()
    state, died = results / "train_state.pt", 0
    while True:
        before = state.stat().st_mtime_ns if state.exists() else 0
        arguments = [sys.executable, "-c", PROGRAM, root / f"{name}.txt", results, "1" if before else "0", order]
        process = subprocess.Popen([str(part) for part in arguments], stdout=subprocess.DEVNULL)
        saves = rng.randint(1, 12)
        while died < kills and saves and process.poll() is None:
            now = state.stat().st_mtime_ns if state.exists() else 0
            saves, before = saves - (now != before), now
            time.sleep(0.002)
        if died < kills and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            died += 1
        if process.wait() == 0:
            print(f"{name:24} {sha256(results)}  killed {died} times", flush=True)
            return sha256(results)
        assert process.returncode == -signal.SIGKILL, process.returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        os.environ["TRT_CLS_CACHE"] = str(root / "cache")
        write_pictures(root / "images")
        patterns = {}
        for out in (root / "shards", *(["s3://bucket/set"] if "AWS_ENDPOINT_URL" in os.environ else [])):
            if isinstance(out, str):
                import s3fs

                s3fs.S3FileSystem().mkdir("bucket")
            for part in ("train", "val"):
                command = ["shards", str(root / "images" / part), "-o", str(out), "--size", "100kB", "--name", part]
                assert cli(command) == 0
            counts = {
                part: len(json.loads((root / "shards" / f"{part}.json").read_text())["shards"])
                for part in ("train", "val")
            }
            patterns[str(out)] = {
                part: f"{out}/{part}-{{000000..{count - 1:06}}}.tar" for part, count in counts.items()
            }
        folder = {part: str(root / "images" / part) for part in ("train", "val")}
        (tars, *stores) = patterns.values()
        by_shards = {trained(root, "tar", SPEC.format(**tars, workers=0), "shards", 0)}
        by_folder = {trained(root, "folder", SPEC.format(**folder, workers=0), "folder", 0)}
        by_folder.add(trained(root, "tar-folder", SPEC.format(**tars, workers=2), "folder", KILLS))
        for store in stores:
            for workers in (0, 1, 2, 4):
                spec = SPEC.format(**store, workers=workers)
                by_shards.add(trained(root, f"s3-{workers}-workers", spec, "shards", KILLS))
            by_folder.add(trained(root, "s3-folder", SPEC.format(**store, workers=2), "folder", KILLS))
        assert len(by_shards) == len(by_folder) == 1
        print("the weights are equal" if stores else "the weights are equal; AWS_ENDPOINT_URL is not set: no S3")
    return 0


if __name__ == "__main__":
    sys.exit(main())
