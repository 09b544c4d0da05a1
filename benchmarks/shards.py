"""Images read from shards against the same as files: bytes from a cold and from a warm cache, and decoded.

Cold: the files' pages are dropped by posix_fadvise before each round, and time is that of a clock. Warm and decoded:
time is that of the processor, which other programs change less. Each round measures both in turn, in the order that a
training has; medians of the rounds, and of the ratios within a round, are written. Peak memory is that of a process of
its own for each. Photographs are smoothed noise.
Results: results/shards.csv. Usage: python benchmarks/shards.py [--images 4000]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from _results import about, write
from PIL import Image

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import image_folder
from trt_cls.data.order import Orders
from trt_cls.data.readahead import ReadAhead
from trt_cls.data.samples import ImageFolder, Sample, Samples
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.shards import shard_folder
from trt_cls.data.stream import stream
from trt_cls.preprocessing.image_file import _content
from trt_cls.spec.experiment import NO_EXTENSIONS

ROUNDS, CLASSES, SIDE, DECODED = 9, 10, 128, 600
SIZE = 4_000_000
PIXELS = Preprocessing(3, 96, 96, "center", "bilinear", "rgb", 255.0, (0.5,) * 3, (0.5,) * 3)


def write_pictures(root: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / str(label)).mkdir(parents=True)
    for index in range(count):
        small = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
            root / str(index % CLASSES) / f"{index}.jpg", quality=90
        )


def drop(root: Path) -> None:
    """Drops the pages of all files below `root` from the cache."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def in_order(folder: ImageFolder) -> list[Sample]:
    """The samples in the order of an epoch."""
    orders = Orders(folder.samples, 64, 1, 0, 1, NO_EXTENSIONS).of_epoch(1, 0)
    return [sample for order in orders for _, sample in order.samples]


def read_bytes(samples: list[Sample], listed: Samples) -> int:
    """As the training loader reads, with its batches of 64."""
    total = 0
    shards = ReadAhead(listed)
    for place, sample in enumerate(samples):
        if place % 64 == 0:
            shards.expect(samples[place : place + 64])
        with ExitStack() as locks:
            total += len(_content(sample.source, locks))
    return total


def decode(samples: list[Sample], listed: Samples) -> int:
    return sum(len(batch.images) for batch in stream(samples[:DECODED], PIXELS, batch_size=32, workers=2))


def timed(
    work: Callable[[list[Sample], Samples], int], samples: list[Sample], listed: Samples, clock: Callable[[], float]
) -> float:
    start = clock()
    assert work(samples, listed)
    return clock() - start


def peak_mb(work: Callable[[list[Sample], Samples], int], samples: list[Sample], listed: Samples) -> int:
    """The most memory of a process that does the work once, with that of this one at its beginning."""
    output, own = os.pipe()
    if os.fork() == 0:
        work(samples, listed)
        os.write(own, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
        os._exit(0)
    os.wait()
    return round(int(os.read(output, 20)) / 1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as made:
        root, out = Path(made) / "images", Path(made) / "shards"
        write_pictures(root, count)
        out.mkdir()
        index = write_shards(image_folder(root), out, "train", SIZE)
        os.sync()
        sources = {
            root: image_folder(root),
            out: shard_folder(out / f"train-{{000000..{len(index.shards) - 1:06}}}.tar"),
        }
        orders = {place: in_order(folder) for place, folder in sources.items()}
        rows = []
        for name, work, cold in (
            ("read, cold", read_bytes, True),
            ("read, warm", read_bytes, False),
            ("decode", decode, False),
        ):
            rounds = []
            clock = time.perf_counter if cold else time.process_time
            for _ in range(ROUNDS):
                seconds = []
                for place, folder in sources.items():
                    if cold:
                        drop(place)
                    seconds.append(timed(work, orders[place], folder.samples, clock))
                rounds.append(tuple(seconds))
            used = DECODED if work is decode else count
            of_files, of_shards = (used / statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(files / shards for files, shards in rounds)
            found = {"what": name, "images": used, "shards": len(index.shards), "rounds": ROUNDS}
            speeds = {"folder_images_per_s": round(of_files), "shards_images_per_s": round(of_shards)}
            peaks = {
                f"{kind}_peak_mb": peak_mb(work, orders[place], sources[place].samples)
                for kind, place in (("folder", root), ("shards", out))
            }
            figures = found | speeds | {"shards_over_folder": round(ratio, 2)} | peaks
            rows.append(figures | about(["numpy", "pillow", "simplejpeg"]))
    write("shards", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
