from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("h5py")

from support.keras_file import calibrate, keras_layers, narrow, write
from support.reference_weights import images
from support.shared_data import tao_json
from support.spec_texts import spec_text
from support.tiny_models import write_images
from trt_cls.artefacts.model_file import checkpoint_contract
from trt_cls.cli import main
from trt_cls.contract import Contract
from trt_cls.errors import ArtefactError
from trt_cls.preprocessing.description import require_spec_fits
from trt_cls.spec import load

SIZE = (3, 32, 32)
ALEXNET = 'arch: "alexnet" input_image_size: "3,32,32"'
CLASSES = [f"class {index}" for index in range(10)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A small AlexNet as TAO writes it, by the number of channels of its images."""
    files = {}
    for channels in (1, 3):
        size = (channels, *SIZE[1:])
        layers, weights = keras_layers(tao_json("layer_tables/alexnet.json"), size, narrow)
        calibrate(layers, weights, images(size))
        files[channels] = write(tmp_path_factory.mktemp("tao") / "a.hdf5", layers, weights).read_bytes()
    return files


@pytest.fixture
def model(written: dict[int, bytes], tmp_path: Path) -> Path:
    """In the layout of TAO's results_dir."""
    path = tmp_path / "results" / "weights" / "alexnet_080.hdf5"
    path.parent.mkdir(parents=True)
    path.write_bytes(written[3])
    return path


def classmap(path: Path, names: list[str]) -> Path:
    path.write_text(json.dumps({name: index for index, name in enumerate(names)}))
    return path


def spec(folder: Path, text: str) -> Path:
    path = folder / "spec.txt"
    path.write_text(text)
    return path


def imported(model: Path, *arguments: str | Path) -> Contract:
    output = model.with_suffix(".safetensors")
    assert main(["import-tao", str(model), "-o", str(output), *map(str, arguments)]) == 0
    return checkpoint_contract(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["import-tao", *map(str, arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_says_what_was_imported_and_what_was_taken_for_granted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contract = imported(model)
    output = capsys.readouterr()
    for reported in (
        "network:       alexnet, 3×32×32, use_bias",
        "pruned",
        "classes:       10: 0, 1, 2, 3, 4 …",
        "bgr",
    ):
        assert reported in output.out
    assert output.out.splitlines()[-1].startswith(f"next: trt-cls export -m {model.with_suffix('.safetensors')} -o ")
    preprocessing, names = output.err.splitlines()
    assert "-e" in preprocessing
    assert "--classmap" in names
    assert contract.classes == tuple(map(str, range(10)))
    pixels = contract.preprocessing
    assert (pixels.mean, pixels.std, pixels.crop) == ((103.939, 116.779, 123.68), (1, 1, 1), "center")
    assert (pixels.divisor, pixels.filter, pixels.channel_order) == (1, "bilinear", "bgr")


@pytest.mark.parametrize("where", ["weights", "."])
def test_the_class_map_of_taos_results_is_found_and_said(
    where: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = classmap(model.parent.parent / where / "classmap.json", CLASSES)
    assert imported(model).classes == tuple(CLASSES)
    assert str(path) in capsys.readouterr().err


def test_a_class_map_by_name_comes_before_the_one_that_is_found(model: Path, tmp_path: Path) -> None:
    classmap(model.with_name("classmap.json"), ["other"])
    assert imported(model, "--classmap", classmap(tmp_path / "c.json", CLASSES)).classes == tuple(CLASSES)


def test_a_class_map_of_another_count_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = classmap(tmp_path / "c.json", CLASSES[:9])
    error = refused(capsys, model, "-o", tmp_path / "a.safetensors", "-cm", path)
    assert f"{path} and {model} disagree: 9 classes in the class map, 10 outputs" in error
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ('preprocess_mode: "torch"', ("rgb", 255, (0.485, 0.456, 0.406), (0.224, 0.224, 0.224))),
        ('preprocess_mode: "tf"', ("rgb", 127.5, (1, 1, 1), (1, 1, 1))),
        ('image_mean { key: "b" value: 1 } image_mean { key: "g" value: 2 } image_mean { key: "r" value: 3 }',
         ("bgr", 1, (1, 2, 3), (1, 1, 1))),
    ],
)  # fmt: skip
def test_the_spec_says_the_pixels_in_taos_numbers(train: str, expected: object, model: Path, tmp_path: Path) -> None:
    text = spec_text(ALEXNET + " resize_interpolation_method: BICUBIC", train, "enable_center_crop: false")
    contract = imported(model, "-e", spec(tmp_path, text))
    pixels = contract.preprocessing
    assert (pixels.channel_order, pixels.divisor, pixels.mean, pixels.std) == expected
    assert (pixels.crop, pixels.filter) == ("none", "bicubic")
    assert contract.model.resize_interpolation_method == "BICUBIC"


@pytest.mark.parametrize(("mode", "mean", "std"), [("caffe", 117.3786, 1), ("torch", 0.449, 0.224), ("tf", 1, 1)])
def test_gray_pixels(
    mode: str, mean: float, std: float, written: dict[int, bytes], model: Path, tmp_path: Path
) -> None:
    model.write_bytes(written[1])
    text = spec_text('arch: "alexnet" input_image_size: "1,32,32"', f'preprocess_mode: "{mode}"')
    pixels = imported(model, "-e", spec(tmp_path, text)).preprocessing
    assert (pixels.channel_order, pixels.mean, pixels.std) == ("gray", (mean,), (std,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model_config.arch=squeezenet", "model_config.arch is squeezenet in the spec and alexnet in the model"),
        ("model_config.input_image_size=3,32,64", "input_image_size is 3,32,64 in the spec and 3,32,32 in the model"),
    ],
)
def test_a_spec_of_another_network_is_refused(
    override: str, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(tmp_path, spec_text(ALEXNET))
    error = refused(capsys, model, "-o", tmp_path / "a.safetensors", "-e", path, "--set", override)
    assert message in error


def test_what_is_imported_is_exported_and_evaluated_with_the_spec_that_it_was_trained_with(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    path = spec(tmp_path, spec_text(ALEXNET, 'preprocess_mode: "torch"', 'top_k: 1 model_path: "a.onnx"'))
    names = ["blue", "green", "red", *CLASSES[3:]]
    imported(model, "-e", path, "-cm", classmap(tmp_path / "c.json", names))
    data = write_images(tmp_path / "images", 1, 32)
    for name in CLASSES[3:]:
        (data / name).mkdir()
        shutil.copy(data / "red" / "0.png", data / name)
    onnx = tmp_path / "a.onnx"
    flags = ["-e", str(path), "--builder", "none", "--images", str(data)]
    assert main(["export", "-m", str(model.with_suffix(".safetensors")), "-o", str(onnx), *flags]) == 0
    flags = ["-m", str(onnx), "--dataset", str(data), "-r", str(tmp_path / "out")]
    assert main(["evaluate", "-e", str(path), *flags]) == 0
    capsys.readouterr()
    caffe = ["--set", "train_config.preprocess_mode=caffe"]
    assert main(["evaluate", "-e", str(path), *flags, *caffe]) == 2
    assert "preprocessing" in capsys.readouterr().err


def test_a_spec_in_torch_mode_fits_taos_numbers_and_ours_and_no_others(model: Path, tmp_path: Path) -> None:
    path = spec(tmp_path, spec_text(ALEXNET, 'preprocess_mode: "torch"'))
    contract = imported(model, "-e", path)
    experiment = load(path, paths=False)
    require_spec_fits(experiment, path, contract, model)
    ours = replace(contract.preprocessing, std=(0.229, 0.224, 0.225))
    require_spec_fits(experiment, path, replace(contract, preprocessing=ours), model)
    neither = replace(contract.preprocessing, std=(0.2, 0.2, 0.2))
    with pytest.raises(ArtefactError, match="std is"):
        require_spec_fits(experiment, path, replace(contract, preprocessing=neither), model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.hdf5", "-o", "a.safetensors"], "none.hdf5 does not exist"),
        (["MODEL", "-o", "a.pth"], "-o a.pth: expected a name that ends in .safetensors"),
        (["MODEL", "-o", "a.safetensors", "--set", "model_config.arch=vgg"], "name one with -e"),
        (["MODEL", "-o", "a.safetensors", "-cm", "none.json"], "none.json"),
        (["MODEL"], "-o"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    arguments: list[str], message: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *[str(model) if argument == "MODEL" else argument for argument in arguments])


def test_a_damaged_file_leaves_nothing_behind(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_bytes(model.read_bytes()[:5000])
    error = refused(capsys, model, "-o", tmp_path / "a.safetensors")
    assert "can't be read as a Keras model" in error
    assert not list(tmp_path.glob("*.safetensors"))


def test_without_h5py_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["import-tao", str(model), "-o", str(tmp_path / "a.safetensors")]) == 1
    assert 'pip install "trt-cls[train]"' in capsys.readouterr().err
