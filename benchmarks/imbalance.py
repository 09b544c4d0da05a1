"""Macro recall on classes at 1:1 to 1:RATIO, with class_weights and with balanced_sampling against without.

For each seed, links to a random part of the training images form a long tail: class i of C keeps RATIO^(-i/(C-1)) of
them. The same network learns from it in each way, and all test images are classified by its last epoch. Differences
are paired: their 95 % intervals come from drawing seeds, and test images within each class, again with replacement.
results/imbalance.csv has a row for each way and seed, and one for the mean of the seeds, written after each seed; with
-r, trainings that are there already are used again.
Usage: nice python benchmarks/imbalance.py DATA [--ratio 50] [--epochs 8] [--seeds 3], DATA with train/ and test/
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from _results import about, write
from numpy.typing import NDArray

from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import predict
from trt_cls.spec import loads
from trt_cls.training.run import train

WAYS = {"without": "", "class_weights": "class_weights { }", "balanced_sampling": "balanced_sampling: true"}
ROUNDS = 10_000
FEW = 3
"""Classes with the fewest images, whose recall stands in a column of its own."""
SPEC = """
model_config {{ arch: "{arch}" input_image_size: "3,32,32" }}
train_config {{
  train_dataset_path: "{train}"
  val_dataset_path: "{validation}"
  batch_size_per_gpu: 64 n_epochs: {epochs} n_workers: 1 random_seed: {seed} preprocess_mode: "torch"
  enable_random_crop: false enable_center_crop: false enable_color_augmentation: false mixup_alpha: 0.0
  optimizer {{ sgd {{ momentum: 0.9 nesterov: true }} }}
  reg_config {{ type: "L2" scope: "Conv2D,Dense" weight_decay: 0.0005 }}
  lr_config {{ cosine {{ learning_rate: 0.05 soft_start: 0.1 }} }}
}}
extensions {{ crop_padding: 4 {way} }}
"""

Right = NDArray[np.bool_]
"""Of each class's test images [classes, images], whether it is answered."""


def long_tail(source: ImageFolder, target: Path, ratio: float, seed: int) -> list[int]:
    """Fills `target` with links to a part of `source`; returns the images of each class."""
    random, kept = np.random.default_rng(seed), []
    last = len(source.classes) - 1
    for index, name in enumerate(source.classes):
        (target / name).mkdir(parents=True)
        paths = [sample.path for sample in source.samples if sample.label == index]
        kept.append(round(len(paths) * ratio ** (-index / last)))
        for number in random.permutation(len(paths))[: kept[-1]]:
            (target / name / paths[number].name).symlink_to(paths[number].absolute())
    return kept


def right_answers(checkpoint: Path, test: ImageFolder) -> Right:
    with closing(open_engine(checkpoint, "cpu")) as engine:
        found = predict(engine, test.samples, batch_size=64, workers=1)
    right = found.probabilities.argmax(axis=1) == found.labels
    return np.stack([right[found.labels == index] for index in range(len(test.classes))])


def intervals(right: dict[str, list[Right]]) -> dict[str, tuple[float, float]]:
    """Of each way's macro recall minus that of "without", mean of the seeds."""
    stacked = {way: np.stack(found).astype(float) for way, found in right.items()}
    seeds, classes, images = stacked["without"].shape
    random, drawn = np.random.default_rng(0), {way: np.empty(ROUNDS) for way in stacked}
    for number in range(ROUNDS):
        chosen = random.integers(seeds, size=seeds)
        counts = np.stack([np.bincount(random.integers(images, size=images), minlength=images) for _ in range(classes)])
        for way, found in stacked.items():
            drawn[way][number] = (found[chosen] * counts).mean()
    return {way: tuple(np.quantile(drawn[way] - drawn["without"], (0.025, 0.975))) for way in stacked}


def row_of(way: str, seed: object, found: list[Right], plain: list[Right]) -> dict[str, object]:
    recall, before = np.mean(found, axis=(0, 2)), np.mean(plain, axis=(0, 2))
    return {
        "way": way,
        "seed": seed,
        "macro_recall": f"{recall.mean():.4f}",
        "points_gained": f"{100 * (recall.mean() - before.mean()):.2f}",
        "low_95": "",
        "high_95": "",
        f"recall_of_the_{FEW}_smallest": f"{recall[-FEW:].mean():.4f}",
        f"recall_of_the_{FEW}_largest": f"{recall[:FEW].mean():.4f}",
    }


def measure(data: Path, arch: str, ratio: float, epochs: int, seeds: int, folder: Path) -> None:
    source, test = image_folder(data / "train"), image_folder(data / "test")
    validation = folder / "validation"
    if not validation.exists():
        part = [sample for index, sample in enumerate(test.samples) if index % 10 == 0]
        long_tail(ImageFolder(test.root, tuple(part), test.classes), validation, 1, 0)
    right: dict[str, list[Right]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        images = folder / f"train-{seed}"
        if not images.exists():
            long_tail(source, images, ratio, seed)
        kept = [len(list((images / name).iterdir())) for name in source.classes]
        for way, line in WAYS.items():
            results = folder / f"{way}-{seed}"
            found = sorted((results / "weights").glob(f"*_{epochs:03}.safetensors"))
            if not found:
                text = SPEC.format(arch=arch, epochs=epochs, seed=seed, way=line, train=images, validation=validation)
                found = [train(loads(text), results, device="cpu").last]
            right[way].append(right_answers(found[0], test))
        common = {
            "arch": arch,
            "images_of_classes": " ".join(map(str, kept)),
            "epochs": epochs,
            "test_images": len(test.samples),
            **about(("torch", "timm")),
        }
        write("imbalance", [{**row, **common} for row in rows_of(right)])


def rows_of(right: dict[str, list[Right]]) -> list[dict[str, object]]:
    """For each way and seed, and for the means."""
    plain = right["without"]
    rows = [row_of(way, seed, [right[way][seed]], [plain[seed]]) for seed in range(len(plain)) for way in WAYS]
    for way, edges in intervals(right).items():
        low, high = (f"{100 * edge:.2f}" for edge in edges)
        bounds = {"low_95": low, "high_95": high} if way != "without" else {}
        rows.append({**row_of(way, f"mean of {len(plain)}", right[way], plain), **bounds})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with train/ and test/, a folder per class in each")
    parser.add_argument("--arch", default="timm/test_resnet", help="default: %(default)s, 0.4 million parameters")
    parser.add_argument("--ratio", type=float, default=50)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-r", "--results", type=Path, help="folder to keep the trainings in")
    given = parser.parse_args()
    if given.data is None:
        print("imbalance: not run, it needs labeled images: name a folder with train/ and test/")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.results or Path(temporary)
        measure(given.data, given.arch, given.ratio, given.epochs, given.seeds, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
