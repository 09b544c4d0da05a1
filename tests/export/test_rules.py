"""Rules for sets and unknown images in exported files: measured on the file, on the half that fitted no temperature."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.tiny_models import CONTRACT, write_images, write_onnx
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.artefacts.onnx_file import write_onnx as write_model
from trt_cls.cli import main
from trt_cls.contract import Conformal, Contract, Reject
from trt_cls.engines import open_engine
from trt_cls.errors import MissingDependency, RequestError
from trt_cls.evaluation.evaluate import predict
from trt_cls.export import parity
from trt_cls.export.confidence import Rules, validation_halves
from trt_cls.export.export import export

pytest.importorskip("onnxruntime")

HELD = replace(CONTRACT, conformal=Conformal(0.9, 0.75), reject=Reject(0.05, 0.5))


def test_rules_are_those_of_the_exported_files_answers_on_the_second_half(
    fp32: onnx.ModelProto, labeled: Path, contract: Contract, tmp_path: Path
) -> None:
    said: list[str] = []
    plain, model = tmp_path / "plain.onnx", tmp_path / "model.onnx"
    write_model(OnnxModel(fp32, contract), plain)
    asked = {"precision": "fp16", "calibrate": True, "rules": Rules(0.8, 0.1), "embed": True}
    export(plain, model, images=labeled, builder="none", say=said.append, **asked)  # type: ignore[arg-type]
    halves = validation_halves(labeled, None, contract.classes)
    assert {len(halves.first), len(halves.second), len({*halves.first, *halves.second})} == {40, 80}
    with closing(open_engine(model, "cpu")) as engine:
        found = predict(engine, halves.second, batch_size=16, workers=0)
    scores = np.sort(1 - found.probabilities[np.arange(40), found.labels].astype(np.float64))
    sure = np.sort(found.probabilities.max(axis=1).astype(np.float64))
    made = read_contract(model)
    assert made.temperature
    # of 41 places: the 33rd smallest score, 0.8 · 41 = 32.8, and the 4th smallest confidence, 0.1 · 41 = 4.1
    assert made.conformal == Conformal(0.8, scores[32])
    assert made.reject == Reject(0.1, sure[3])
    on = f"by 40 images of {labeled}"
    assert f"coverage 0.8, sets of classes from probability {1 - scores[32]:.4g}, {on}" in said
    assert f"reject rate 0.1, unknown below {sure[3]:.4g}, {on}" in said


def test_a_file_gets_other_rules_and_keeps_those_that_are_not_asked_for(tmp_path: Path) -> None:
    model, images = write_onnx(tmp_path / "model.onnx", HELD), write_images(tmp_path / "images", 14)
    flags = ["--images", str(images), "--builder", "none", "--coverage", "0.95"]
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "new.onnx"), *flags]) == 0
    made = read_contract(tmp_path / "new.onnx")
    assert made.conformal
    assert (made.conformal.coverage, made.reject) == (0.95, HELD.reject)
    assert replace(made, conformal=HELD.conformal) == HELD
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "copy.onnx"), "--builder", "none"]) == 0
    assert (tmp_path / "copy.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("contract", "flags", "message"),
    [
        (HELD, ["--fp16"], "calibrated in fp32 already, with coverage 0.9, sets of classes from probability 0.25"),
        (HELD, ["--calibrate", "--images", "IMAGES"], "reject rate 0.05, unknown below 0.5; expected a model that"),
        (replace(CONTRACT, classes=("a", "unknown", "c")), ["--reject-rate", "0.1"], 'a class is named "unknown"'),
        (CONTRACT, ["--coverage", "0.9"], "measure on labeled images, and none are named"),
        (CONTRACT, ["--coverage", "0.9", "--images", "IMAGES"], "--coverage: 3 validation images are left"),
        (CONTRACT, ["--reject-rate", "0.1", "--images", "IMAGES"], "expected at least 9 of them; name more images"),
        (CONTRACT, ["--coverage", "1"], "'--coverage': 1.0 is not in the range 0<x<1"),
        (CONTRACT, ["--reject-rate", "0"], "'--reject-rate': 0.0 is not in the range 0<x<1"),
    ],
)
def test_rules_that_would_not_hold_are_refused(
    tmp_path: Path, contract: Contract, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = write_onnx(tmp_path / "model.onnx", contract), write_images(tmp_path / "images", 2)
    given = [str(images) if word == "IMAGES" else word for word in flags]
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "new.onnx"), "--builder", "none", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "new.onnx").exists()


def test_rules_are_not_left_out_where_the_file_can_not_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingDependency("onnxruntime", "Running an ONNX file", "cpu")

    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 14)
    monkeypatch.setattr(parity, "open_engine", missing)
    with pytest.raises(MissingDependency):
        export(model, tmp_path / "new.onnx", images=images, builder="none", rules=Rules(0.9))
    assert not (tmp_path / "new.onnx").exists()


def test_the_halves_are_the_same_each_time(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="none are named"):
        validation_halves(None, None, CONTRACT.classes)
    images = write_images(tmp_path / "images", 5)
    again = [validation_halves(images, None, CONTRACT.classes) for _ in range(2)]
    assert again[0] == again[1]
    assert [len(part) for part in again[0][1:]] == [8, 7]
    assert {sample.label for sample in again[0].first} == {sample.label for sample in again[0].second} == {0, 1, 2}
