"""Memory and time to list ten million images: files of a folder, and an index of shards.

The names are made up and nothing is decoded: the figures are those of the list alone, without the walk through the
folders, each in a process of its own. Results: results/listing.csv. Usage: python benchmarks/listing.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _results import about, write

from trt_cls.data.order import Orders
from trt_cls.data.samples import ImageFolder, Samples, files
from trt_cls.data.shard_index import ROW, Index, Shard, write_index
from trt_cls.data.shards import shard_folder
from trt_cls.spec.experiment import NO_EXTENSIONS

CLASSES, SHARDS, LENGTH = 1000, 1000, 100_000


def name(label: int, number: int) -> str:
    return f"n{label:08}/n{label:08}_{number}.JPEG"


def of_files(count: int, _: Path) -> ImageFolder:
    each = count // CLASSES
    groups = ((label, [name(label, number) for number in range(each)]) for label in range(CLASSES))
    return ImageFolder(Path("images"), files(Path("images"), groups), tuple(map(str, range(CLASSES))))


def of_shards(count: int, folder: Path) -> ImageFolder:
    return shard_folder(folder / f"train-{{000000..{SHARDS - 1:06}}}.tar")


def write_synthetic_index(count: int, folder: Path) -> None:
    """An index as `shards` writes it, and shards that are holes of the right size."""
    rows = np.zeros(count, ROW)
    mixed = np.random.default_rng(0).permutation(count)
    rows["shard"], place = mixed % SHARDS, mixed // SHARDS
    rows["offset"], rows["length"] = place * (LENGTH + 2048) + 512, LENGTH
    rows["label"] = np.arange(count) // (count // CLASSES)
    paths = [name(row // (count // CLASSES), row % (count // CLASSES)).encode() for row in range(count)]
    rows["path_at"][1:] = np.cumsum([len(path) + 1 for path in paths], dtype=np.uint64)[:-1]
    size = (count // SHARDS + 1) * (LENGTH + 2048)
    shards = tuple(Shard(f"train-{n:06}.tar", size, count // SHARDS, "") for n in range(SHARDS))
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.truncate(size)
    write_index(folder / "train.json", Index(tuple(map(str, range(CLASSES))), shards), rows, paths)


def measured(kind: str, count: int, folder: Path) -> dict[str, object]:
    """In this process: memory and time of the list, and of the first batch of an epoch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    found = {"folder": of_files, "shards": of_shards}[kind](count, folder)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    assert isinstance(found.samples, Samples)
    assert found.counts.sum() == count
    listed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    next(Orders(found.samples, 256, 0, 0, 1, NO_EXTENSIONS).of_epoch(1, 0))
    first = time.perf_counter() - start
    return {
        "source": kind,
        "images": count,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "list_mb": round((listed - before) / 1000),
        "bytes_per_image": round((listed - before) * 1024 / count),
        "first_batch_seconds": round(first, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> int:
    count = int(os.environ.get("IMAGES", 10_000_000))
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], count, Path(sys.argv[2]))))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", f"import listing; listing.write_synthetic_index({count}, listing.Path({folder!r}))"],
            check=True,
            cwd=Path(__file__).parent,
        )
        for kind in ("folder", "shards"):
            done = subprocess.run([sys.executable, __file__, kind, folder], check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout) | about(["numpy"]))
    write("listing", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
