from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pixel_reference import preprocess
from support.spec_texts import spec_text
from support.tiny_models import RGB, write_onnx
from trt_cls.cli import main
from trt_cls.contract import Preprocessing
from trt_cls.data.augmentation import augment, draws_for
from trt_cls.data.samples import ImageFolder, files
from trt_cls.data.shard_writer import write_shards
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import Floats, Pixels, normalize
from trt_cls.spec import loads

TEXT = spec_text('input_image_size: "3,24,32"', "random_seed: 7")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "cab"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (50, 40 + seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: str | Path) -> int:
    return main(["preprocess", *(str(argument) for argument in arguments)])


def test_val_writes_the_validation_tensors(images: list[Path], spec: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "x.npy"
    assert run(*images, "-e", spec, "-o", output) == 0
    preprocessing = preprocessing_from_spec(loads(TEXT), "train")
    tensor = np.load(output)
    assert (tensor.dtype, tensor.shape) == (np.float32, (3, 3, 24, 32))
    np.testing.assert_array_equal(tensor, [preprocess(decode(path, 3), preprocessing) for path in images])


def test_shards_give_the_tensors_of_their_images(images: list[Path], spec: Path, tmp_path: Path) -> None:
    index = write_shards(ImageFolder(tmp_path, files(tmp_path, [(-1, [p.name for p in images])]), ()), tmp_path, "s", 1)
    shards = f"{tmp_path}/s-{{000000..{len(index.shards) - 1:06}}}.tar"
    assert run(shards, "-e", spec, "-o", tmp_path / "x.npy") == run(*images, "-e", spec, "-o", tmp_path / "y.npy") == 0
    found, expected = (sorted(tensor.tobytes() for tensor in np.load(tmp_path / name)) for name in ("x.npy", "y.npy"))
    assert len(found) == 3
    assert found == expected


def test_train_writes_the_first_epochs_tensors(images: list[Path], spec: Path, tmp_path: Path) -> None:
    assert run(*images, "-e", spec, "-o", tmp_path / "x.npy", "--split", "train") == 0
    experiment = loads(TEXT)
    preprocessing, train = preprocessing_from_spec(experiment, "train"), experiment.train_config
    assert train is not None
    expected = [
        normalize(augment(decode(path, 3), preprocessing, train, draws_for(7, 1, index)), preprocessing)
        for index, path in enumerate(images)
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert (
        run(*images, "-e", spec, "-o", tmp_path / "y.npy", "--split", "train", "--set", "train_config.random_seed=8")
        == 0
    )
    assert not np.array_equal(np.load(tmp_path / "y.npy"), expected)


def test_a_model_brings_its_own_preprocessing_and_a_folder_its_images(images: list[Path], tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    assert run(images[0].parent, "-m", model, "-o", tmp_path / "x.npy") == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "x.npy"), [preprocess(decode(path, 3), RGB) for path in sorted(images)]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.npy"], "expected either a spec or a model"),
        (["-e", "spec.txt", "-m", "model.onnx", "-o", "x.npy"], "expected either a spec or a model"),
        (["-m", "model.onnx", "-o", "x.npy", "--split", "train"], "name a spec with -e SPEC"),
        (
            ["-e", "spec.txt", "-o", "x.npy", "--split", "train", "--executor", "cuda"],
            "--executor cuda does not augment",
        ),
        (["-e", "spec.txt", "-o", "x.bin"], "expected a file name ending in .npy"),
        (["-e", "spec.txt", "-o", "x.npy", "absent.png"], "absent.png: no such file or folder"),
        (["-e", "spec.txt", "-o", "x.npy", "broken.png"], "broken.png: not an image of a known format"),
        (["-e", "spec.txt", "-o", "x.npy", "thin.png"], "thin.png: 1×600000 pixels are too long and thin"),
    ],
)
def test_wrong_requests_exit_2_with_one_line_and_no_file(
    images: list[Path], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_text("text")
    Image.new("RGB", (1, 600_000)).save("thin.png")
    assert run(images[0], *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_sheet_has_the_pixels_of_the_tensor(images: list[Path], spec: Path, tmp_path: Path, split: str) -> None:
    arguments = ("-e", spec, "-o", tmp_path / "x.npy", "--sheet", tmp_path / "x.png", "--split", split)
    assert run(*images, *arguments) == 0
    sheet, preprocessing = np.asarray(Image.open(tmp_path / "x.png")), preprocessing_from_spec(loads(TEXT), "train")
    assert sheet.shape == (2 * 24 + 4, 2 * 32 + 4, 3), "three images in two rows"
    for tensor, (top, left) in zip(np.load(tmp_path / "x.npy"), ((0, 0), (0, 36), (28, 0)), strict=True):
        np.testing.assert_array_equal(normalize(sheet[top : top + 24, left : left + 32], preprocessing), tensor)


def test_train_draws_what_the_loader_does_with_all_extensions(images: list[Path], spec: Path, tmp_path: Path) -> None:
    from trt_cls.data.folder import ImageFolder, Sample
    from trt_cls.data.loader import TrainingLoader

    spec.write_text(TEXT + "extensions { random_erasing: 1.0 rand_augment { } }")
    plain = "train_config.mixup_alpha=0"
    assert run(*images, "-e", spec, "--set", plain, "-o", tmp_path / "x.npy", "--split", "train") == 0
    experiment = loads(spec.read_text(), overrides=[plain])
    folder = ImageFolder(root=tmp_path, classes=("a",), samples=tuple(Sample(path, 0) for path in images))
    preprocessing, train = preprocessing_from_spec(experiment, "train"), experiment.train_config
    assert train is not None
    loader = TrainingLoader(folder, preprocessing, replace(train, n_workers=0), extensions=experiment.extensions)
    (batch,) = loader.epoch(1)
    drawn = {image.numpy().tobytes() for image in batch.images}
    assert {image.tobytes() for image in np.load(tmp_path / "x.npy")} == drawn


def test_the_gpus_tensors_are_what_its_executor_returns_for_the_decoded_images(
    images: list[Path], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnTheCpu(CudaPreprocessing):
        def __init__(self, preprocessing: Preprocessing) -> None:
            self.preprocessing = preprocessing

        def preprocess(self, pixels: Sequence[Pixels]) -> Floats:
            shapes = [image.squeeze() for image in pixels]
            return np.stack([preprocess(Image.fromarray(image), self.preprocessing) for image in shapes])

        def close(self) -> None:
            pass

    assert run(*images, "-e", spec, "-o", tmp_path / "cpu.npy") == 0
    monkeypatch.setattr("trt_cls.preprocessing.cuda.CudaPreprocessing", OnTheCpu)
    monkeypatch.setattr("trt_cls.cli.preprocess.GPU_BATCH", 2)
    assert run(*images, "-e", spec, "-o", tmp_path / "gpu.npy", "--executor", "cuda") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "gpu.npy"), np.load(tmp_path / "cpu.npy"))
