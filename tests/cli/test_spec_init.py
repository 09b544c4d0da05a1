"""`trt-cls spec init`: from a folder of images to a report in three commands."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_cls.cli import main
from trt_cls.spec import load
from trt_cls.spec.starter import Pictures, architecture, starter_text

ROOT = Path(__file__).parents[2]
CLASSES = ("blue", "green", "red")


def write(root: Path, per_class: int = 10, size: tuple[int, int] = (28, 28), mode: str = "RGB") -> Path:
    """Noise in the color of its class."""
    rng = np.random.default_rng(3)
    for index, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., 2 - index] += 100
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*words: str) -> int:
    return main(["spec", "init", *words])


SMALL = Pictures(
    train="data/photos/train",
    val="data/photos/val",
    test="",
    classes=10,
    images=2000,
    width=500,
    height=375,
    color=True,
    remarks=(
        "Small data: what it writes for 2,000 color photographs in ten classes, from pretrained weights at a low rate;",
        "for a folder of your own it chooses size, batch, epochs and rate. Accuracy with this spec is not measured.",
    ),
)


def test_the_recipe_for_small_data_is_what_it_writes() -> None:
    text = starter_text(SMALL, *architecture(None, SMALL, hub=True), "runs/photos", hub=True, gpu=False)
    assert (ROOT / "specs/small_data.txt").read_text() == text


def test_three_commands_lead_from_a_folder_to_a_report(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("photos"))
    assert init("photos") == 0
    assert "next: trt-cls train -e spec.txt -r runs/photos\n" in capsys.readouterr().out
    assert main(["spec", "check", "spec.txt"]) == 0
    fewer = ["--set", "train_config.n_epochs=1", "--set", "train_config.n_workers=0", "--device", "cpu"]
    assert main(["train", "-e", "spec.txt", "-r", "runs/photos", *fewer]) == 0
    with Path("runs/photos/split.csv").open(newline="") as file:
        held_out = {row["path"] for row in csv.DictReader(file) if row["part"] == "val"}
    assert sorted(Path(path).parent.name for path in held_out) == sorted(2 * CLASSES)
    assert main(["evaluate", "-e", "spec.txt", "-r", "runs/photos/evaluation"]) == 0
    assert Path("runs/photos/evaluation/report.html").is_file()
    with Path("runs/photos/evaluation/predictions.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"photos/{path}" for path in held_out}
    curve = Path("runs/photos/training.csv").read_text()
    more = ["--set", "train_config.n_epochs=1", "--resume", "--set", "extensions.validation_split=0.3"]
    assert main(["train", "-e", "spec.txt", "-r", "runs/photos", *more]) == 2
    assert "extensions.validation_split: 0.2 ≠ 0.3" in capsys.readouterr().err
    assert Path("runs/photos/training.csv").read_text() == curve


@pytest.mark.parametrize(
    ("size", "mode", "expected", "crops"),
    [
        ((28, 28), "RGB", "3,48,48", False),
        ((20, 20), "L", "1,32,32", False),
        ((100, 100), "RGB", "3,112,112", True),
        ((500, 100), "RGB", "3,112,112", False),
        ((400, 300), "LA", "1,224,224", True),
    ],
)
def test_size_color_and_crops_are_those_of_the_pictures(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], mode: str, expected: str, crops: bool
) -> None:
    monkeypatch.setattr("trt_cls.cli.spec._weights", lambda arch: None)
    write(Path("photos"), 2, size, mode)
    assert init("photos", "-o", "new/spec.txt") == 0
    spec = load("new/spec.txt", needs=("train_config", "eval_config"))
    assert spec.train_config is not None
    assert spec.eval_config is not None
    assert (spec.model_config.arch, spec.model_config.n_layers) == ("resnet", 18 if crops or size[0] > 100 else 10)
    assert spec.model_config.input_image_size == expected
    assert spec.train_config.enable_random_crop == spec.train_config.enable_center_crop == crops
    assert spec.eval_config.enable_center_crop == crops
    assert (spec.extensions.crop_padding > 0) != crops
    assert spec.extensions.validation_split == 0.2


@pytest.mark.parametrize(
    ("parts", "val", "evaluated", "split"),
    [
        (("train", "validation", "test"), "set/validation", "set/test", 0),
        (("train", "valid"), "set/valid", "set/valid", 0),
        (("train", "test"), "", "set/test", 0.2),
        (("train",), "", "", 0.2),
    ],
)
def test_folders_train_val_and_test_are_taken(parts: tuple[str, ...], val: str, evaluated: str, split: float) -> None:
    for part in parts:
        write(Path("set", part), 2)
    assert init("set") == 0
    spec = load("spec.txt", needs=("train_config", "eval_config"))
    assert spec.train_config is not None
    assert spec.eval_config is not None
    assert (spec.train_config.train_dataset_path, spec.train_config.val_dataset_path) == ("set/train", val)
    assert (spec.eval_config.eval_dataset_path, spec.extensions.validation_split) == (evaluated, split)


def test_a_class_named_train_is_a_class() -> None:
    write(Path("set"), 2)
    Path("set/red").rename("set/train")
    assert init("set") == 0
    assert 'train_dataset_path: "set"' in Path("spec.txt").read_text()


@pytest.mark.parametrize(
    ("arch", "lines"),
    [
        ("resnet18", ['arch: "resnet"', "n_layers: 18", "use_batch_norm: true"]),
        ("vgg", ['arch: "vgg"', "n_layers: 16"]),
        ("squeezenet", ['arch: "squeezenet"', "learning_rate: 0.00125"]),
        ("torchvision/resnet18", ['arch: "torchvision/resnet18"', 'pretrained_model_path: "hub"']),
    ],
)
def test_the_architecture_may_be_named(monkeypatch: pytest.MonkeyPatch, arch: str, lines: list[str]) -> None:
    monkeypatch.setattr("trt_cls.cli.spec._weights", lambda arch: "here" if "/" in arch else None)
    write(Path("photos"), 2)
    assert init("photos", "--arch", arch) == 0
    found = [line.strip() for line in Path("spec.txt").read_text().splitlines()]
    assert [line for line in lines if not any(line in text for text in found)] == []


def test_pretrained_weights_are_taken_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_cls.cli.spec._weights", lambda arch: "here" if "/" in arch else None)
    write(Path("photos"), 2, (120, 120))
    assert init("photos") == 0
    spec = load("spec.txt", needs=("train_config",), paths=False)
    assert spec.train_config is not None
    assert (spec.model_config.arch, spec.train_config.pretrained_model_path) == ("torchvision/resnet18", "hub")


def test_pretrained_weights_of_a_named_network_are_taken_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    write(Path("photos"), 2)
    assert init("photos", "--arch", "torchvision/resnet18") == 0
    assert 'pretrained_model_path: "hub"' in Path("spec.txt").read_text()
    assert "train downloads pretrained weights of torchvision/resnet18 once" in capsys.readouterr().out


def test_nothing_is_fetched_and_weights_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    from trt_cls.models.external import has_cached_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not has_cached_weights("torchvision/resnet18")
    path = tmp_path / "hub/checkpoints" / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.touch()
    assert has_cached_weights("torchvision/resnet18")
    assert not has_cached_weights("torchvision/none")


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda: write(Path("x"), 1), ("x",), "3 of 3 classes have fewer than two images (blue, green, red); a class"),
        (lambda: write(Path("x")).joinpath("red/0.png").write_bytes(b""), ("x", "--arch", "resnet20"), 'mean "resnet"'),
        (
            lambda: [path.write_bytes(b"") for path in write(Path("x"), 3).glob("red/*")],
            ("x",),
            "(red), 3 images",
        ),
        (lambda: Path("x/only").mkdir(parents=True), ("x",), "only one class folder (only)"),
        (lambda: write(Path("x/photos")), ("x",), "are they in it? name x/photos"),
        (lambda: Path("x.tar").write_bytes(b"x"), ("x.tar",), "of images per class; unpack it"),
        (lambda: Path("x").mkdir(), ("x",), "no class folders in it"),
        (lambda: None, ("x",), "no such folder"),
        (lambda: Path("spec.txt").write_text("mine"), (".",), "-o spec.txt: exists already"),
    ],
)
def test_what_can_t_be_learned_is_refused_in_one_line(
    make: object, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make()  # type: ignore[operator]
    assert init(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not Path("spec.txt").exists() or Path("spec.txt").read_text() == "mine"


def test_what_was_seen_is_said_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("photos"), 20)
    for path in list(Path("photos/red").iterdir())[2:]:
        path.unlink()
    Path("photos/blue/0.png").write_bytes(b"none")
    assert init("photos") == 0
    out, text = capsys.readouterr().out, Path("spec.txt").read_text()
    for line in (
        "photos: 42 images of 3 classes, 2 to 20 of each.",
        "42 looked at: 28×28 pixels in the middle, color, 1 can't be read.",
        "Can't be read, skipped by train: photos/blue/0.png: not an image of a known format",
        "Unequal classes, red the smallest: look at each class in the report, not at top-1.",
    ):
        assert f"{line}\n" in out
        assert f"# {line}\n" in text


def test_names_with_quotes_are_written_so_that_they_are_read_back() -> None:
    write(Path('a "b" \\c é'), 2)
    assert init('a "b" \\c é') == 0
    spec = load("spec.txt", needs=("train_config",))
    assert spec.train_config is not None
    assert spec.train_config.train_dataset_path == 'a "b" \\c é'
    assert json.dumps('a "b" \\c é', ensure_ascii=False) in Path("spec.txt").read_text()


@pytest.mark.slow
def test_the_guide_s_commands_run(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs/your-own-photos.md").read_text(encoding="utf-8")
    from trt_cls.models.external import build

    blocks = re.findall(r"^```console\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.setattr("trt_cls.models.external.hub_weights", lambda config: build(config, 1000).state_dict())
    write(Path("photos"), 5)
    Path("photos/blue").rename("photos/cat")
    Path("photos/green").rename("photos/dog")
    for path in Path("photos/dog").iterdir():
        path.rename(path.with_suffix(".jpg"))
    for words in (shlex.split(line)[1:] for line in "".join(blocks).splitlines()):
        fewer = ["--set", "train_config.n_epochs=1", "--set", "train_config.n_workers=0"] if words[0] == "train" else []
        assert main([*words, *fewer]) == 0, words
    assert len(Path("runs/photos/labels/result.csv").read_text().splitlines()) == 15
