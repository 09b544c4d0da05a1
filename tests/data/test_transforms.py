"""Shift, RandAugment, erasing and cutmix: torchvision's, by draws that belong to each image and batch."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.pixel_reference import preprocessing_of
from trt_cls.data import loader as loader_module
from trt_cls.data.augmentation import apply, augment, plan
from trt_cls.data.folder import ImageFolder, Sample
from trt_cls.data.loader import TrainingBatch, TrainingLoader
from trt_cls.data.transforms import Transforms
from trt_cls.spec.experiment import NO_EXTENSIONS, Extensions, LrConfig, Optimizer, RandAugment, RegConfig, TrainConfig
from trt_cls.spec.extensions import RandomResizedCrop

PREPROCESSING = preprocessing_of("rgb", "bilinear", "none", "16x24", "torch")
NOTHING_DRAWN: dict[str, Any] = {
    "enable_random_crop": False, "disable_horizontal_flip": True, "mixup_alpha": 0.0, "label_smoothing": 0.0,
}  # fmt: skip
ALL = Extensions(
    random_resized_crop=RandomResizedCrop(),
    trivial_augment=True,
    repeated_augment=2,
    random_erasing=0.5,
    cutmix_alpha=1.0,
)
NEWER = Extensions(random_resized_crop=RandomResizedCrop(), trivial_augment=True, repeated_augment=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(root / f"{index:02}.png")
    return ImageFolder(root, tuple(Sample(root / f"{index:02}.png", index % 3) for index in range(12)), ("a", "b", "c"))


def train_config(**fields: Any) -> TrainConfig:
    rest = {"optimizer": Optimizer(), "reg_config": RegConfig(type="None"), "lr_config": LrConfig()}
    return TrainConfig(train_dataset_path="", val_dataset_path="", **rest, **fields)


def batches(folder: ImageFolder, extensions: Extensions, workers: int = 0, **given: Any) -> list[TrainingBatch]:
    train = train_config(**{**NOTHING_DRAWN, "batch_size_per_gpu": 4, "n_workers": workers, **given})
    return list(TrainingLoader(folder, PREPROCESSING, train, extensions=extensions).epoch(1))


def test_shifts_are_torchvisions_crops_of_the_image_with_reflected_padding() -> None:
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    padded = v2.functional.pad(torch.from_numpy(pixels).permute(2, 0, 1), [3], padding_mode="reflect")
    windows = {
        v2.functional.crop(padded, top, left, 9, 13).permute(1, 2, 0).numpy().tobytes()
        for top in range(7)
        for left in range(7)
    }
    asked, own = Extensions(crop_padding=3), preprocessing_of("rgb", "bilinear", "none", "9x13")
    train = train_config(**NOTHING_DRAWN)
    drawn = {augment(pixels, own, train, Random(seed), asked).tobytes() for seed in range(1000)}
    assert drawn == windows, "1000 fair draws miss one of 49 windows once in twenty million runs"


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_and_torchs_generator_change_nothing(folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_processors", lambda: 4)
    alone = batches(folder, ALL, mixup_alpha=0.3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for workers in (1, 4):
        for found, expected in zip(batches(folder, ALL, workers=workers, mixup_alpha=0.3), alone, strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.targets, expected.targets)
    assert not torch.equal(batches(folder, ALL, random_seed=1)[0].images, alone[0].images)
    assert torch.equal(torch.get_rng_state(), before)


def photo(height: int = 37, width: int = 53) -> Any:
    """Smooth colors, which every operation changes."""
    pixels = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def seeded_for(*place: object) -> None:
    torch.manual_seed(Random("/".join(map(str, place))).getrandbits(63))


@pytest.mark.parametrize(
    ("name", "extensions", "theirs"),
    [
        ("trivial_augment", Extensions(trivial_augment=True), ("TrivialAugmentWide",)),
        ("rand_augment", Extensions(rand_augment=RandAugment(num_ops=2, magnitude=7)), ("RandAugment", 2, 7)),
    ],
)
def test_changed_images_are_torchvisions_on_the_same_draws(
    name: str, extensions: Extensions, theirs: tuple[Any, ...]
) -> None:
    from torchvision.transforms import v2

    transforms, changed = Transforms(extensions, 7), 0
    change = getattr(v2, theirs[0])(*theirs[1:])
    for index in range(40):
        found = transforms.changed(photo(), 2, index)
        seeded_for(7, 2, name, index)
        expected = change(torch.from_numpy(photo().copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, expected)
        changed += not np.array_equal(found, photo())
    assert changed > 20


def test_erased_rectangles_are_torchvisions_on_the_same_draws() -> None:
    from torchvision.transforms import v2

    transforms, erased = Transforms(Extensions(random_erasing=0.5), 7), 0
    for index in range(40):
        found = torch.ones(3, 16, 24)
        left, top, right, bottom = transforms.erased((3, 16, 24), 2, index)
        found[:, top:bottom, left:right] = 0
        seeded_for(7, 2, "random_erasing", index)
        assert torch.equal(found, v2.RandomErasing(0.5)(torch.ones(3, 16, 24)))
        erased += not found.all()
    assert 5 < erased < 35


def test_cut_batches_are_torchvisions_on_the_same_draws() -> None:
    from torchvision.transforms import v2

    torch.manual_seed(1)
    images, labels = torch.rand(4, 3, 16, 24), torch.tensor([0, 2, 1, 1])
    targets = torch.nn.functional.one_hot(labels, 3).float()
    for step in range(10):
        mixing = Transforms(Extensions(cutmix_alpha=1.0), 7).cutmix((3, 16, 24), 2, step)
        seeded_for(7, 2, "cutmix", step)
        their_images, their_targets = v2.CutMix(num_classes=3)(images, labels)
        assert torch.equal(mixing.images(images.clone()), their_images)
        torch.testing.assert_close(mixing.targets(targets), their_targets, rtol=0, atol=1e-7)


@pytest.mark.parametrize("asked", [RandomResizedCrop(), RandomResizedCrop(min_scale=0.9, min_ratio=3, max_ratio=4)])
def test_resized_crops_are_torchvisions_on_the_same_draws(asked: RandomResizedCrop) -> None:
    """The second one finds no rectangle of such a ratio, and takes torchvision's central crop."""
    # two resizes, as Pillow before 13: later ones begin with the pass that is cheaper, which rounds otherwise
    from torchvision.transforms import v2

    extensions, train = Extensions(random_resized_crop=asked), train_config(**NOTHING_DRAWN)
    ranges = {"scale": (asked.min_scale, asked.max_scale), "ratio": (asked.min_ratio, asked.max_ratio)}
    theirs = v2.RandomResizedCrop((1, 1), **ranges)
    for index in range(20):
        part = Transforms(extensions, 7).cropped(photo(), 2, index)
        drawn = plan((part.shape[1], part.shape[0]), PREPROCESSING, train, Random(0), extensions)
        seeded_for(7, 2, "random_resized_crop", index)
        box = theirs.make_params([Image.fromarray(photo())])
        cropped = v2.functional.crop(Image.fromarray(photo()), **box)
        expected = cropped.resize((24, cropped.height), Image.Resampling.BILINEAR)
        expected = expected.resize((24, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(apply(drawn, part, PREPROCESSING.filter), np.asarray(expected))


def test_repeated_images_come_in_a_row_augmented_anew(folder: ImageFolder) -> None:
    plain = torch.cat([batch.images for batch in batches(folder, Extensions(repeated_augment=3))])
    assert len(plain) == 12, "an epoch is as long as without"
    assert len({image.numpy().tobytes() for image in plain}) == 4
    for first in range(0, 12, 3):
        assert torch.equal(plain[first], plain[first + 1])
        assert torch.equal(plain[first], plain[first + 2])
    assert len({image.numpy().tobytes() for batch in batches(folder, NEWER) for image in batch.images}) == 12
    train = train_config(**{**NOTHING_DRAWN, "batch_size_per_gpu": 2, "n_workers": 0})
    shares = [TrainingLoader(folder, PREPROCESSING, train, rank, 2, NEWER).epoch(1) for rank in (0, 1)]
    whole = batches(folder, NEWER)
    for one, other, batch in zip(*shares, whole, strict=True):
        assert torch.equal(torch.stack([one.images, other.images], 1).flatten(0, 1), batch.images)


@pytest.mark.parametrize("magnitude", [0, 30])
def test_rand_augment_changes_pixels_as_its_magnitude_says(folder: ImageFolder, magnitude: int) -> None:
    plain = torch.cat([batch.images for batch in batches(folder, NO_EXTENSIONS)])
    asked = Extensions(rand_augment=RandAugment(num_ops=3, magnitude=magnitude))
    changed = torch.cat([batch.images for batch in batches(folder, asked)])
    share = (plain != changed).flatten(1).any(dim=1).double().mean()
    # at magnitude 0 only equalize and autocontrast do anything, one of 14 changes each
    assert share < 0.75 if magnitude == 0 else share > 0.75
    assert changed.min() >= plain.min() - 3
    assert changed.max() <= plain.max() + 3


def test_erased_rectangles_are_zero_after_normalization(folder: ImageFolder) -> None:
    plain = torch.cat([batch.images for batch in batches(folder, NO_EXTENSIONS)])
    erased = torch.cat([batch.images for batch in batches(folder, Extensions(random_erasing=1.0))])
    for before, after in zip(plain, erased, strict=True):
        gone = (after == 0).all(dim=0)
        down, across = gone.any(dim=1), gone.any(dim=0)
        assert torch.equal(gone, down[:, None] & across[None, :]), "a rectangle"
        assert 0.01 < gone.double().mean() < 0.4
        assert torch.equal(after[:, ~gone], before[:, ~gone])
    some = torch.cat([batch.images for batch in batches(folder, Extensions(random_erasing=0.5))])
    assert 0 < sum(torch.equal(a, b) for a, b in zip(plain, some, strict=True)) < 12


def test_cutmix_mixes_targets_by_the_area_that_is_anothers(folder: ImageFolder) -> None:
    found = 0
    for plain, mixed in zip(batches(folder, NO_EXTENSIONS), batches(folder, Extensions(cutmix_alpha=1.0)), strict=True):
        for row in range(4):
            anothers = (mixed.images[row] != plain.images[row]).any(dim=0)
            assert torch.equal(mixed.images[row][:, anothers], plain.images[row - 1][:, anothers])
            share = anothers.float().mean()
            expected = (1 - share) * plain.targets[row] + share * plain.targets[row - 1]
            torch.testing.assert_close(mixed.targets[row], expected, atol=1e-6, rtol=0)
            found += int(anothers.any())
    assert found > 4


def test_with_mixup_chance_takes_one_of_the_two_for_each_batch(folder: ImageFolder) -> None:
    asked = Extensions(cutmix_alpha=1.0)
    common: dict[str, Any] = {"batch_size_per_gpu": 2}
    both = batches(folder, asked, mixup_alpha=1.0, **common)
    cut, mixed = batches(folder, asked, **common), batches(folder, NO_EXTENSIONS, mixup_alpha=1.0, **common)
    taken = [
        [torch.equal(batch.images, other.images) for other in (a, b)]
        for batch, a, b in zip(both, cut, mixed, strict=True)
    ]
    assert all(any(choice) for choice in taken)
    assert {choice.index(True) for choice in taken} == {0, 1}, "six batches of this seed have both"
