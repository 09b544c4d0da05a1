from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.artefacts.sidecar import read_sidecar
from trt_cls.contract import Contract
from trt_cls.data.split import Dataset, evaluation_dataset
from trt_cls.errors import DataError, ExportError, RequestError
from trt_cls.export import export as exporting
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8, calibration_dataset, shortcomings
from trt_cls.export.sample_images import BATCH, images_for
from trt_cls.spec.experiment import (
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    TrainConfig,
)

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def int8(checkpoint: Path, output: Path, pictures: Path, *, builder: Any = "none", **asked: Any) -> list[str]:
    said: list[str] = []
    request = Int8(**{"images": pictures, "batches": 1, **asked})
    export(checkpoint, output, precision="int8", int8=request, images=pictures, builder=builder, say=said.append)
    return said


METHODS = ("percentile", "minmax", "entropy")


@pytest.fixture(scope="module")
def by_method(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The INT8 file of each method."""
    folder = tmp_path_factory.mktemp("methods")
    for method in METHODS:
        int8(checkpoint, folder / f"{method}.onnx", pictures, method=method)
    return {method: (folder / f"{method}.onnx").read_bytes() for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_becomes_an_int8_file_that_is_the_same_each_time(
    checkpoint: Path, contract: Contract, pictures: Path, tmp_path: Path, by_method: dict[str, bytes], method: Any
) -> None:
    said = int8(checkpoint, tmp_path / "again.onnx", pictures, method=method)
    assert (tmp_path / "again.onnx").read_bytes() == by_method[method]
    assert read_contract(tmp_path / "again.onnx") == replace(contract, precision="int8", eight_bits=1.0)
    assert said[0].startswith(f"calibration: {pictures} holds 12 images, 16 were asked for")
    assert said[1] == f"calibrated on 12 of 12 images of {pictures} ({method})"
    assert said[2] == "8 bits compute 100.0% of the multiply-adds"
    assert said[3].startswith(f"wrote {tmp_path / 'again.onnx'} (int8, ")


def test_methods_differ(by_method: dict[str, bytes]) -> None:
    assert len(set(by_method.values())) == 3


def test_auto_takes_the_method_that_changes_the_answers_least(
    checkpoint: Path, pictures: Path, tmp_path: Path, by_method: dict[str, bytes]
) -> None:
    said = int8(checkpoint, tmp_path / "auto.onnx", pictures)
    ((best, rest),) = re.findall(r"\((\w+); signal/noise of the logits: (.*)\)", said[1])
    decibels = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+) dB", rest)}
    assert list(decibels) == ["entropy", "percentile", "minmax"]
    assert max(decibels.values()) > min(decibels.values())
    assert decibels[best] > max(decibels.values()) - 0.21  # a tie of a tenth, and the last digits
    assert (tmp_path / "auto.onnx").read_bytes() == by_method[best]


def test_an_engine_is_built_from_it_and_built_again(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "model.onnx"
    int8(checkpoint, output, pictures, builder="tensorrt-rtx")
    assert read_sidecar(tmp_path / "model.engine").contract.precision == "int8"
    before = output.read_bytes()
    export(output, output, engine=tmp_path / "again.engine", builder="tensorrt-rtx")
    assert output.read_bytes() == before


def test_auto_tells_what_each_layer_costs_and_what_is_lost(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    said = int8(checkpoint, tmp_path / "model.onnx", pictures, max_loss=100)
    assert any(line.split() == ["layer", "operator", "signal/noise", "computes", "in"] for line in said)
    layers = [line for line in said if line.endswith(" int8")]
    assert any("predictions" in line and "Gemm" in line for line in layers)
    assert any(line.startswith("top-1 on 12 images: float32 ") for line in said)


def test_auto_without_labeled_images_is_refused(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    request = Int8(pictures, max_loss=1.0)
    with pytest.raises(RequestError, match="--auto measures top-1 on labeled images"):
        export(checkpoint, tmp_path / "model.onnx", precision="int8", int8=request, builder="none")
    assert list(tmp_path.iterdir()) == []


def test_images_of_the_spec_are_taken_and_none_at_all_is_refused(pictures: Path) -> None:
    training = TrainConfig(
        train_dataset_path=str(pictures), val_dataset_path="", enable_center_crop=False, optimizer=Optimizer(),
        reg_config=RegConfig(type="None"), lr_config=LrConfig(),
    )  # fmt: skip
    experiment = Experiment(model_config=ModelConfig(), train_config=training)
    assert calibration_dataset(Int8(), experiment) == Dataset(pictures)
    assert calibration_dataset(Int8(Path("other")), experiment) == Dataset(Path("other"))
    with pytest.raises(RequestError, match="expected --calibration-images DIR"):
        calibration_dataset(Int8(), None)


def test_with_a_split_the_held_out_images_check_and_the_others_calibrate(pictures: Path, contract: Contract) -> None:
    training = TrainConfig(
        train_dataset_path=str(pictures), optimizer=Optimizer(), reg_config=RegConfig(type="None"),
        lr_config=LrConfig(),
    )  # fmt: skip
    extensions = Extensions(validation_split=0.25)
    experiment = Experiment(model_config=ModelConfig(), train_config=training, extensions=extensions)
    calibrated = images_for(contract.preprocessing, calibration_dataset(Int8(), experiment))
    checked = images_for(contract.preprocessing, evaluation_dataset(experiment))
    parts = [{sample.path for sample in images.samples} for images in (calibrated, checked)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(pictures.rglob("*.png"))
    assert len(parts[0]) > len(parts[1]) > 0


def test_few_images_and_images_of_one_folder_are_reported(contract: Contract, pictures: Path, tmp_path: Path) -> None:
    assert shortcomings(images_for(contract.preprocessing, pictures, BATCH), 12) == []
    (few,) = shortcomings(images_for(contract.preprocessing, pictures, BATCH), 16)
    assert "holds 12 images, 16 were asked for" in few
    shutil.copytree(pictures / "cat", tmp_path / "cat")
    _, one = shortcomings(images_for(contract.preprocessing, tmp_path, BATCH), 16)
    assert f"one folder, {tmp_path / 'cat'}" in one


def test_the_batches_come_from_all_classes(contract: Contract, pictures: Path, tmp_path: Path) -> None:
    source = next(pictures.rglob("*.png"))
    for name in contract.classes:
        (tmp_path / name).mkdir()
        for index in range(20):
            shutil.copy(source, tmp_path / name / f"{index}.png")
    images = images_for(contract.preprocessing, tmp_path, 2 * BATCH)
    assert len(images.samples) == 32
    counts = [sum(sample.path.parent.name == name for sample in images.samples) for name in contract.classes]
    assert min(counts) >= 6


def test_images_that_can_not_be_decoded_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image that can be decoded"):
        int8(checkpoint, tmp_path / "model.onnx", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_a_file_that_answers_otherwise_is_not_kept(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer whose weights for one class grew stands in for a quantizer gone wrong."""
    real = exporting.quantize

    def gone_wrong(model: OnnxModel, *given: Any) -> OnnxModel:
        model = replace(model, proto=onnx.ModelProto.FromString(model.proto.SerializeToString()))
        (tensor,) = [tensor for tensor in model.proto.graph.initializer if tensor.name == "predictions.weight"]
        values = numpy_helper.to_array(tensor).copy()
        values[0] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return real(model, *given)

    monkeypatch.setattr(exporting, "quantize", gone_wrong)
    with pytest.raises(ExportError, match="--auto 1"):
        int8(checkpoint, tmp_path / "model.onnx", pictures)
    assert list(tmp_path.iterdir()) == []
