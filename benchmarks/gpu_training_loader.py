"""Training images per second that reach the GPU, augmented there by the kernel or by the loader's processes.

Each round goes through all images once by either way, in turn; medians of the rounds. Nothing is trained, so this is
what a network could be fed with at most. Writes results/gpu-training-loader.csv. Usage: make bench-gpu IMAGES=DIR
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import _results
import torch

from trt_cls.contract import Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import PackedBatch, TrainingBatch, TrainingLoader
from trt_cls.preprocessing.cuda import CudaAugmentation
from trt_cls.spec import load
from trt_cls.training.compute import Compute, choose_compute
from trt_cls.training.prefetch import prefetched

ROOT = Path(__file__).resolve().parents[1]
BATCH, ROUNDS = 128, 5
WORKERS = os.cpu_count() or 1
LEAST_IMAGES = 16384
"""A smaller folder is gone through several times in a round."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(3, 224, 224, "center", "bilinear", "rgb", 255.0, MEAN, STD)


def measure(
    folder: ImageFolder, compute: Compute, kernel: CudaAugmentation, preprocessing: Preprocessing
) -> list[Mapping[str, object]]:
    many = replace(folder, samples=tuple(folder.samples) * -(-LEAST_IMAGES // len(folder.samples)))
    train = load(ROOT / "specs" / "photos_resnet50.txt", paths=False).train_config
    train = replace(train, batch_size_per_gpu=BATCH, n_workers=WORKERS)
    loaders = {name: TrainingLoader(many, preprocessing, train, pack=name == "GPU") for name in ("GPU", "CPU")}
    first = {name: next(prefetched(loader.epoch(0), compute, kernel)).images for name, loader in loaders.items()}
    sizes = {name: bytes_per_image(next(loader.epoch(0))) for name, loader in loaders.items()}
    rounds = [
        {name: images_per_second(loader, number, compute, kernel) for name, loader in loaders.items()}
        for number in range(ROUNDS)
    ]
    return [
        {
            "augmented_on": name,
            "images_per_second": f"{statistics.median(each[name] for each in rounds):.0f}",
            "bytes_per_image": sizes[name],
            "values_off": int((first["GPU"] != first["CPU"]).sum()),
            "batch": BATCH,
            "workers": WORKERS,
            "images": len(many.samples),
            "rounds": ROUNDS,
            **_results.about(("numpy", "pillow", "torch", "pycuda")),
        }
        for name in loaders
    ]


def images_per_second(loader: TrainingLoader, epoch: int, compute: Compute, kernel: CudaAugmentation) -> float:
    """Over a full epoch, which includes the start and the end of all workers."""
    start = time.perf_counter()
    images = sum(len(batch.images) for batch in prefetched(loader.epoch(epoch), compute, kernel))
    torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def bytes_per_image(batch: TrainingBatch | PackedBatch) -> int:
    """Bytes copied to the GPU."""
    if isinstance(batch, PackedBatch):
        return batch.bundle.nbytes // batch.count
    return batch.images.nbytes // len(batch.images)


def main(images: Path) -> list[Mapping[str, object]]:
    compute = choose_compute("cuda", "auto")
    with closing(CudaAugmentation(PREPROCESSING, compute.device.index)) as kernel:
        return measure(image_folder(images), compute, kernel, PREPROCESSING)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with one sub-folder per class")
    given = parser.parse_args()
    sys.exit(_results.run("gpu-training-loader", lambda: main(given.images)))
