"""How fast images are read, decoded, resized and normalized, compared with the usual ways in torch.

Each round measures all of them in turn on the same photographs, so that a machine whose speed drifts does so for all;
medians of the rounds, and of the ratios within a round, are written to results/image_loading.csv. `wrong_pixels` is the
share of resized uint8 values that differ from Pillow's. Usage: make bench IMAGES=DIR
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import CONTRAST, HUE, SATURATION, change_colors
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import TrainingLoader
from trt_cls.data.stream import stream
from trt_cls.preprocessing import pillow
from trt_cls.preprocessing.cpu import executor
from trt_cls.preprocessing.images import decode, simplejpeg
from trt_cls.preprocessing.pillow import Pixels
from trt_cls.spec import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "image_loading.csv"
BATCH, WORKERS, ROUNDS = 16, 2, 15

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCH = Preprocessing(3, 224, 224, "center", "bilinear", "rgb", 255.0, MEAN, STD)
"""What torchvision's classifiers are evaluated with: the shorter side to 256, and its middle."""
PIXELS = replace(TORCH, divisor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
"""The same without normalization."""


class TensorImages(Dataset[tuple[torch.Tensor, int]]):
    """torchvision's way without Pillow: decoded and resized as tensors."""

    def __init__(self, folder: ImageFolder, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._samples = folder.samples
        self._transform = transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self._samples[index]
        return self._transform(decode_image(str(sample.path), ImageReadMode.RGB)), sample.label


def transforms(preprocessing: Preprocessing, *to_tensor: Any) -> v2.Compose:
    """`to_tensor` comes last of what Pillow can do: v2 resizes what it is given, an image or a tensor."""
    return v2.Compose(
        [
            v2.Resize(256, InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(224),
            *to_tensor,
            v2.ToDtype(torch.float32, scale=preprocessing.divisor == 255.0),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


def same_colors(image: Image.Image) -> Pixels:
    """Our color augmentation as a transform."""
    hue, saturation, contrast = (random.uniform(-most, most) for most in (HUE, SATURATION, CONTRAST))
    return change_colors(np.asarray(image), hue, saturation, contrast)


def training_transforms(colors: Any) -> v2.Compose:
    """torchvision's reference for training, with `colors`."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            colors,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


class Ways:
    """Each method goes through all images once."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        train = load(ROOT / "specs" / "photos_resnet50.txt", paths=False).train_config
        train = replace(train, batch_size_per_gpu=BATCH, n_workers=WORKERS, mixup_alpha=0.0)
        self._training = TrainingLoader(folder, TORCH, train)
        torchvision_folder = datasets.ImageFolder(str(folder.root), transforms(TORCH, v2.PILToTensor()))
        options: dict[str, Any] = {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True}
        self._by_pillow = DataLoader(torchvision_folder, **options)
        jitter = v2.ColorJitter(contrast=CONTRAST, saturation=SATURATION, hue=HUE / 360)
        self._trainings = {
            name: DataLoader(
                datasets.ImageFolder(str(folder.root), training_transforms(colors)), shuffle=True, **options
            )
            for name, colors in (("same", same_colors), ("jitter", jitter))
        }
        self._by_tensors = DataLoader(TensorImages(folder, transforms(TORCH)), **options)

    def stream(self) -> None:
        for _ in stream(self._folder.samples, TORCH, batch_size=BATCH, workers=WORKERS):
            pass

    def training_loader(self) -> None:
        for _ in self._training.epoch(1):
            pass

    def torchvision_training_same_colors(self) -> None:
        for _ in self._trainings["same"]:
            pass

    def torchvision_training_jitter(self) -> None:
        for _ in self._trainings["jitter"]:
            pass

    def plain_pillow_loop(self) -> None:
        for sample in self._folder.samples:
            pillow.normalize(pillow.fit(decode(sample.path, 3), TORCH), TORCH)

    def torchvision_pillow(self) -> None:
        for _ in self._by_pillow:
            pass

    def torchvision_tensors(self) -> None:
        for _ in self._by_tensors:
            pass


def images_per_second(work: Callable[[], None], images: int) -> float:
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def measure(folder: ImageFolder) -> dict[str, float]:
    ways = Ways(folder)
    compared = {
        "stream": ("plain_pillow_loop", "torchvision_pillow", "torchvision_tensors"),
        "training_loader": ("torchvision_training_same_colors", "torchvision_training_jitter"),
    }
    names = [name for ours, theirs in compared.items() for name in (ours, *theirs)]
    rounds = [
        {name: images_per_second(getattr(ways, name), len(folder.samples)) for name in names} for _ in range(ROUNDS + 1)
    ][1:]  # the first one warms up and starts the workers
    for each in rounds:
        for ours, theirs in compared.items():
            for name in theirs:
                each[f"{ours}/{name}"] = each[ours] / each[name]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def wrong_pixels(folder: ImageFolder) -> dict[str, float]:
    """The share of values that are not those of Pillow's resize, for both ways that do without it."""
    ours = np.concatenate([batch.images for batch in stream(folder.samples, PIXELS, batch_size=BATCH, workers=WORKERS)])
    exact = np.stack(
        [pillow.normalize(pillow.fit(decode(sample.path, 3), PIXELS), PIXELS) for sample in folder.samples]
    )
    by_tensors = TensorImages(folder, transforms(PIXELS))
    theirs = np.stack([by_tensors[index][0].numpy() for index in range(len(by_tensors))])
    return {
        "wrong_pixels stream": float(np.mean(ours != exact)),
        "wrong_pixels torchvision_tensors": float(np.mean(theirs != exact)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with one sub-folder of photographs per class"
    )
    folder = image_folder(parser.parse_args().images)
    figures = measure(folder) | wrong_pixels(folder)
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "executor": f"{executor()}, {'simplejpeg' if simplejpeg() else 'pillow'}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("pillow", "torch", "torchvision")),
        "images": len(folder.samples),
        "workers": WORKERS,
        "rounds": ROUNDS,
    }
    rows = [{"figure": name, "median": f"{value:.4g}", **about} for name, value in figures.items()]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['figure']:34} {row['median']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
