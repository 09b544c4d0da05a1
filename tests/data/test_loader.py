from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.pixel_reference import preprocessing_of
from trt_cls.data import loader as loader_module
from trt_cls.data.augmentation import augment, draws_for
from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.data.loader import TrainingBatch, TrainingLoader
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import normalize
from trt_cls.spec.experiment import Extensions, LrConfig, Optimizer, RegConfig, TrainConfig

PREPROCESSING = preprocessing_of("rgb", "bilinear", "center", "16x24", "torch")
BROKEN = (2, 17)


def train_config(**fields: Any) -> TrainConfig:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    return TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Thirty-one images of three classes, two of them broken."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    samples = []
    for index in range(31):
        path = root / f"{index:02}.png"
        Image.fromarray(generator.integers(0, 256, (30, 20 + index, 3), dtype=np.uint8)).save(path)
        if index in BROKEN:
            path.write_bytes(b"")
        samples.append(Sample(path, index % 3))
    return ImageFolder(root, tuple(samples), ("a", "b", "c"))


def some(folder: ImageFolder, count: int) -> ImageFolder:
    return ImageFolder(folder.root, folder.samples[3 : 3 + count], folder.classes)


def same(a: list[TrainingBatch], b: list[TrainingBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets) and x.skipped == y.skipped
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_the_batches(folder: ImageFolder, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_processors", lambda: 4)
    alone = TrainingLoader(folder, PREPROCESSING, train_config(batch_size_per_gpu=4, n_workers=0))
    loader = TrainingLoader(folder, PREPROCESSING, train_config(batch_size_per_gpu=4, n_workers=workers))
    first = list(alone.epoch(1))
    assert same(list(loader.epoch(1)), first)
    next(loader.epoch(2))  # an epoch that is left in the middle
    assert same(list(loader.epoch(3, start_step=5)), list(alone.epoch(3))[5:])
    assert not same(list(loader.epoch(2)), first)
    assert sorted(skipped.path for batch in first for skipped in batch.skipped) == [
        folder.samples[index].path for index in BROKEN
    ]
    assert sum(len(batch.images) for batch in first) == 29


@pytest.fixture
def uneven(folder: ImageFolder) -> ImageFolder:
    """Twenty-two images of a, five of b, two of c."""
    sound = [sample.path for index, sample in enumerate(folder.samples) if index not in BROKEN]
    labels = [0] * 22 + [1] * 5 + [2] * 2
    return ImageFolder(folder.root, tuple(map(Sample, sound, labels)), folder.classes)


BALANCED = Extensions(balanced_sampling=True)
PLAIN = {"mixup_alpha": 0.0, "label_smoothing": 0.0, "batch_size_per_gpu": 8}


def test_a_balanced_epoch_has_each_class_equally_often_and_no_image_twice_alike(uneven: ImageFolder) -> None:
    loader = TrainingLoader(uneven, PREPROCESSING, train_config(n_workers=0, **PLAIN), extensions=BALANCED)
    batches, again = list(loader.epoch(1)), list(loader.epoch(2))
    targets = torch.cat([batch.targets for batch in batches]).sum(dim=0)
    assert sorted(targets.tolist()) == [9, 10, 10]
    assert [len(batch.images) for batch in batches] == [8, 8, 8, 5]
    assert len({image.numpy().tobytes() for batch in batches for image in batch.images}) == 29, "augmented anew"
    assert not same(batches, again)


def test_balanced_batches_are_the_same_for_workers_processes_and_from_any_step(
    uneven: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_processors", lambda: 2)
    alone = TrainingLoader(uneven, PREPROCESSING, train_config(n_workers=0, **PLAIN), extensions=BALANCED)
    helped = TrainingLoader(uneven, PREPROCESSING, train_config(n_workers=2, **PLAIN), extensions=BALANCED)
    expected = list(alone.epoch(3))
    assert same(list(helped.epoch(3, start_step=1)), expected[1:])
    helped.close()
    half = train_config(n_workers=0, **PLAIN | {"batch_size_per_gpu": 4})
    shares = [list(TrainingLoader(uneven, PREPROCESSING, half, rank, 2, BALANCED).epoch(3)) for rank in (0, 1)]
    for whole, one, other in zip(expected, *shares, strict=True):
        assert torch.equal(whole.images[0::2], one.images)
        assert torch.equal(whole.images[1::2], other.images)
        assert torch.equal(whole.targets[1::2], other.targets)


def test_every_image_comes_once_an_epoch_augmented_by_its_own_draws(folder: ImageFolder) -> None:
    train = train_config(batch_size_per_gpu=8, n_workers=0, mixup_alpha=0.0, label_smoothing=0.0, random_seed=5)
    expected = {}
    for index, sample in enumerate(folder.samples):
        if index not in BROKEN:
            pixels = augment(decode(sample.path, 3), PREPROCESSING, train, draws_for(5, 2, index))
            expected[normalize(pixels, PREPROCESSING).tobytes()] = sample.label
    found = {
        image.numpy().tobytes(): int(target.argmax())
        for batch in TrainingLoader(folder, PREPROCESSING, train).epoch(2)
        for image, target in zip(batch.images, batch.targets, strict=True)
    }
    assert found == expected


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (5, 2, [2, 3]),
    ],
)
def test_a_lone_last_image_joins_the_batch_before(
    folder: ImageFolder, count: int, batch_size: int, sizes: list[int]
) -> None:
    train = train_config(batch_size_per_gpu=batch_size, n_workers=0)
    loader = TrainingLoader(some(folder, count), PREPROCESSING, train)
    assert [len(batch.images) for batch in loader.epoch(0)] == sizes
    assert loader.steps_per_epoch == len(sizes)


def test_a_batch_of_broken_images_is_empty(folder: ImageFolder) -> None:
    broken = ImageFolder(folder.root, tuple(folder.samples[index] for index in BROKEN), folder.classes)
    (batch,) = TrainingLoader(broken, PREPROCESSING, train_config(n_workers=0)).epoch(0)
    assert (batch.images.shape, batch.targets.shape) == ((0, 3, 16, 24), (0, 3))
    assert {skipped.reason for skipped in batch.skipped} == {"not an image of a known format"}


def test_targets_are_smoothed_and_mixed(folder: ImageFolder) -> None:
    train = train_config(batch_size_per_gpu=6, n_workers=0, mixup_alpha=1.0, label_smoothing=0.3)
    plain = train_config(batch_size_per_gpu=6, n_workers=0, mixup_alpha=0.0, label_smoothing=0.3)
    few = some(folder, 6)
    (mixed,) = TrainingLoader(few, PREPROCESSING, train).epoch(1)
    (pure,) = TrainingLoader(few, PREPROCESSING, plain).epoch(1)
    assert set(np.unique(pure.targets.numpy().round(5))) == {np.float32(0.1), np.float32(0.8)}
    rng = Random("42/1/mixup/0")
    for row in range(6):
        draw = rng.betavariate(1.0, 1.0)
        share = max(draw, 1 - draw)
        expected = share * pure.images[row] + (1 - share) * pure.images[5 - row]
        torch.testing.assert_close(mixed.images[row], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(mixed.targets[row], share * pure.targets[row] + (1 - share) * pure.targets[5 - row])


def test_an_epoch_leaves_torchs_own_generator_alone(folder: ImageFolder) -> None:
    before = torch.random.get_rng_state()
    list(TrainingLoader(some(folder, 4), PREPROCESSING, train_config(n_workers=0)).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


INTERRUPTED = """
import signal
from pathlib import Path
from support.pixel_reference import preprocessing_of
from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.data.loader import TrainingLoader
from trt_cls.spec.experiment import LrConfig, Optimizer, RegConfig, TrainConfig

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    train = TrainConfig(train_dataset_path="", val_dataset_path="", optimizer=Optimizer(),
                        reg_config=RegConfig(type="None"), lr_config=LrConfig(), batch_size_per_gpu=1, n_workers=2)
    samples = tuple(Sample(Path({image!r}), 0) for _ in range(100_000))
    folder = ImageFolder(Path("."), samples, ("a", "b"))
    loader = TrainingLoader(folder, preprocessing_of("rgb", "bilinear", "center", "16x24"), train)
    try:
        for number, _ in enumerate(loader.epoch(0)):
            if number == 0:
                print("started", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_ctrl_c_is_quiet_in_the_workers(folder: ImageFolder, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.format(image=str(folder.samples[5].path)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("interrupted\n", "")
