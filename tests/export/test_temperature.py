"""A temperature inside exported files: the calibrated answers, and the arg-max of the answers without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from support import tiny_models
from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel, read_onnx
from trt_cls.contract import INPUT, OUTPUT, Contract
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ExportError, RequestError
from trt_cls.evaluation.temperature import softened
from trt_cls.export import confidence
from trt_cls.export.confidence import calibrated, fit_temperature, validation_halves
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8, quantize
from trt_cls.export.original import Original
from trt_cls.export.sample_images import images_for

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


def run(model: OnnxModel, images: Any) -> Any:
    return session_of(model.proto).run([OUTPUT], {INPUT: images})[0]


@pytest.fixture(scope="module")
def int8(fp32: onnx.ModelProto, contract: Contract, pictures: Path) -> onnx.ModelProto:
    asked = Int8(images=pictures, batches=1, method="minmax")
    return quantize(OnnxModel(fp32, contract), asked, pictures, None, lambda line: None).proto


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("temperature", [0.4, 1.7])
def test_a_folded_temperature_softens_the_answers_and_keeps_the_labels(
    request: pytest.FixtureRequest, contract: Contract, precision: Any, temperature: float
) -> None:
    plain = OnnxModel(request.getfixturevalue(precision), replace(contract, precision=precision))
    images = images_for(contract.preprocessing, None)
    said: list[str] = []
    made = calibrated(plain, temperature, images, said.append)
    assert said == [f"temperature {temperature}: arg-max unchanged on 64 images, 0 ties left out"]
    assert made.contract == replace(plain.contract, temperature=temperature)
    added = [node.op_type for node in made.proto.graph.node][-2:].count("Mul")
    assert (added, len(made.proto.graph.node)) == (
        (0, len(plain.proto.graph.node)) if precision == "fp32" else (1, len(plain.proto.graph.node) + 1)
    )
    batch = next(images.batches())
    before, after = run(plain, batch), run(made, batch)
    np.testing.assert_allclose(after, softened(before, temperature), atol=2e-6)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_is_calibrated_and_held_against_the_calibrated_network(
    checkpoint: Path, labeled: Path, contract: Contract, tmp_path: Path, precision: Any
) -> None:
    said: list[str] = []
    asked = {"precision": precision, "images": labeled, "builder": "none", "say": said.append, "embed": True}
    if precision == "int8":
        asked["int8"] = Int8(images=labeled, batches=1, method="minmax")
    result = export(checkpoint, tmp_path / "model.onnx", calibrate=True, **asked)
    temperature = read_contract(tmp_path / "model.onnx").temperature
    assert temperature == fit_temperature(
        Original(checkpoint), validation_halves(labeled, None, contract.classes), said.append
    )
    assert temperature is not None
    assert 0.1 < temperature < 0.6, "1/4, by 40 images"
    assert said[0] == said[-1]
    assert "fitted on 40 images of" in said[0]
    assert f"temperature {temperature:.4g}: arg-max unchanged on 80 images, 0 ties left out" in said
    assert result.parity is not None
    assert result.parity.max_abs_difference <= (1e-4 if precision == "fp32" else 0.5)
    with pytest.raises(RequestError, match="already, with temperature"):
        export(tmp_path / "model.onnx", tmp_path / "again.onnx", calibrate=True, images=labeled)
    copy = tmp_path / "copy.onnx"
    export(tmp_path / "model.onnx", copy, builder="none")
    assert copy.read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_a_layer_without_bias_is_divided_and_what_is_not_linear_is_multiplied(tmp_path: Path) -> None:
    plain = read_onnx(tiny_models.write_onnx(tmp_path / "model.onnx"))
    images = images_for(plain.contract.preprocessing, None)
    batch = next(images.batches())
    made = calibrated(plain, 2.0, images, lambda line: None)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(made.proto.graph.initializer[0]), 2 * np.eye(3))
    plain.proto.graph.node[2].output[0] = "inner"
    plain.proto.graph.node.insert(3, onnx.helper.make_node("Tanh", ["inner"], ["logits"]))
    bent = calibrated(plain, 2.0, images, lambda line: None)
    assert [node.op_type for node in bent.proto.graph.node][-3:] == ["Tanh", "Mul", "Softmax"]
    np.testing.assert_allclose(run(bent, batch), softened(run(plain, batch), 2.0), atol=1e-6)


def test_weights_whose_rounding_changes_a_label_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_onnx(tiny_models.write_onnx(tmp_path / "model.onnx"))
    images = images_for(plain.contract.preprocessing, None)
    outcomes = [(1, 0, 64), (0, 2, 64)]
    monkeypatch.setattr(confidence, "_compared", lambda *_: outcomes.pop(0))
    said: list[str] = []
    made = calibrated(plain, 2.0, images, said.append)
    assert made.proto.graph.node[-2].op_type == "Mul"
    assert said == ["temperature 2: arg-max unchanged on 62 images, 2 ties left out"]
    outcomes[:] = [(1, 0, 64), (1, 0, 64)]
    with pytest.raises(ExportError, match="changes the arg-max of 1 of 64 images"):
        calibrated(plain, 2.0, images, said.append)


def test_a_contract_has_format_2_only_with_a_temperature(contract: Contract) -> None:
    plain, warm = (json.loads(made.to_json()) for made in (contract, replace(contract, temperature=1.5)))
    assert plain["format"] == 1
    assert "temperature" not in plain, "version 0.1 refuses fields that it does not know"
    assert (warm["format"], warm["temperature"]) == (2, 1.5)
    assert contract_from_json(json.dumps(warm), "a") == replace(contract, temperature=1.5)
    assert contract_from_json(json.dumps(plain), "a") == contract


def test_images_to_fit_on_must_be_named() -> None:
    with pytest.raises(RequestError, match="--calibrate, --coverage and --reject-rate measure on labeled images"):
        validation_halves(None, None, ())
