from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel, read_onnx, write_onnx
from trt_cls.artefacts.sidecar import read_sidecar
from trt_cls.contract import Contract, Precision
from trt_cls.engines import open_engine
from trt_cls.engines.sidecar import read_plan
from trt_cls.errors import ArtefactError, ExportError, MissingDependency, RequestError, TrtClsError
from trt_cls.export import original, parity, tensorrt
from trt_cls.export.export import export
from trt_cls.export.sample_images import images_for
from trt_cls.gpu import Gpu
from trt_cls.spec.experiment import (
    EvalConfig,
    Experiment,
    LrConfig,
    Optimizer,
    RegConfig,
    TrainConfig,
)

pytest.importorskip("torch")


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_a_checkpoint_becomes_a_checked_file_that_answers_as_it_does(
    checkpoint: Path, contract: Contract, pictures: Path, tmp_path: Path, precision: Precision, bound: float
) -> None:
    pytest.importorskip("onnxruntime")
    output = tmp_path / "deep" / "model.onnx"
    result = export(checkpoint, output, precision=precision, images=pictures, builder="none")
    assert read_contract(output) == replace(contract, precision=precision)
    assert result.parity == read_onnx(output).parity
    assert result.parity is not None
    assert (result.parity.images, result.parity.top1_agreement) == (12, 1.0)
    assert (result.engine, result.engine_parity) == (None, None)
    batch = np.concatenate(list(images_for(contract.preprocessing, pictures).batches()))
    expected, found = (open_engine(path, "cpu").infer(batch) for path in (checkpoint, output))
    measured = np.abs(expected - found).max()
    assert measured == pytest.approx(result.parity.max_abs_difference, rel=0.06, abs=1e-7)
    assert measured <= bound
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]


def test_exporting_twice_gives_the_same_bytes_and_replaces_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("old")
    written = []
    for _ in range(2):
        export(checkpoint, output, builder="none")
        written.append(output.read_bytes())
    assert written[0] == written[1]


def slip(model: OnnxModel, scale: float) -> OnnxModel:
    """The graph with the last layer's weights for one class moved."""
    (tensor,) = [tensor for tensor in model.proto.graph.initializer if tensor.name == "predictions.weight"]
    values = numpy_helper.to_array(tensor).copy()
    values[0] += scale
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(("precision", "scale"), [("fp32", 0.01), ("fp16", 1.0), ("fp32", float("nan"))])
def test_a_file_that_answers_otherwise_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, scale: float
) -> None:
    pytest.importorskip("onnxruntime")
    real = original.onnx_from_module
    monkeypatch.setattr(original, "onnx_from_module", lambda *given: slip(real(*given), scale))
    with pytest.raises(ExportError, match="not answer as the network does"):
        export(checkpoint, tmp_path / "model.onnx", precision=precision, builder="none")
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime_the_file_is_written_unchecked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxruntime")
    result = export(checkpoint, tmp_path / "model.onnx", builder="none")
    assert result.parity is None
    assert read_onnx(tmp_path / "model.onnx").parity is None


def test_without_torch_a_checkpoint_is_refused_by_name_of_the_package(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "torch")
    with pytest.raises(MissingDependency, match=r"torch.*trt-cls\[train\]"):
        export(checkpoint, tmp_path / "model.onnx", builder="none")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(checkpoint, output, builder="none")
    return output


def test_an_exported_file_is_converted_and_held_against_itself(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = export(exported, tmp_path / "half.onnx", precision="fp16", builder="none")
    assert result.parity is not None
    assert 0 < result.parity.max_abs_difference <= 0.05
    assert read_contract(tmp_path / "half.onnx").precision == "fp16"


@pytest.mark.parametrize("in_place", [True, False])
def test_an_exported_file_in_its_own_precision_is_kept_to_the_byte(
    exported: Path, tmp_path: Path, in_place: bool
) -> None:
    before = exported.read_bytes()
    output, said = exported if in_place else tmp_path / "copy.onnx", []
    result = export(exported, output, builder="none", say=said.append)
    assert output.read_bytes() == before
    assert said[0].startswith(f"{output}: unchanged" if in_place else f"copied {exported} to {output}, unchanged")
    day = datetime.fromtimestamp(exported.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    assert f"not checked again\n  checked when it was written, {day}: top-1 agreement 100.00%" in said[0]
    assert output.stat().st_mtime == exported.stat().st_mtime
    assert result.parity == read_onnx(exported).parity


def test_an_engine_is_written_with_its_sidecar(
    exported: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    without(monkeypatch, "tensorrt")
    said: list[str] = []
    result = export(exported, tmp_path / "model.onnx", precision="fp16", say=said.append)
    assert result.engine == tmp_path / "model.engine", "auto builds one where it can"
    assert "tensorrt is not installed" in said[1]
    assert result.engine_parity is not None or "was not run: " in said[2]
    sidecar = read_sidecar(result.engine)
    read_plan(result.engine, sidecar)
    assert sidecar.sha256 == hashlib.sha256(result.engine.read_bytes()).hexdigest()
    assert sidecar.onnx_sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    assert (sidecar.onnx, sidecar.builder, sidecar.gpu) == ("model.onnx", "tensorrt-rtx", "")
    assert sidecar.contract == replace(contract, precision="fp16")


def test_the_sidecars_command_builds_the_same_engine(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from trt_cls.cli import main

    onnx_file, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    export(exported, onnx_file, engine=engine, builder="tensorrt-rtx")
    before = read_sidecar(engine)
    engine.unlink()
    monkeypatch.chdir(tmp_path)
    assert main(before.command.split()[1:]) == 0
    assert replace(read_sidecar(engine), sha256="") == replace(before, sha256="")


@pytest.mark.parametrize(("engine", "builder"), [("model.engine", "auto"), (None, "tensorrt"), (None, "tensorrt-rtx")])
def test_an_engine_that_was_asked_for_and_can_not_be_built_is_an_error_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str | None, builder: Any
) -> None:
    without(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(MissingDependency):
        export(checkpoint, tmp_path / "model.onnx", engine=tmp_path / engine if engine else None, builder=builder)
    assert list(tmp_path.iterdir()) == []


def test_without_any_builder_auto_writes_the_onnx_alone(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "tensorrt", "tensorrt_rtx")
    result = export(exported, tmp_path / "model.onnx")
    assert result.engine is None
    assert "tensorrt-rtx is not installed" in result.no_engine
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model"}, r"use -o .*model\.onnx"),
        ({"output": "model.engine"}, r"use -o .*model\.onnx"),
        ({"engine": "model.trt"}, r"use --engine .*model\.engine"),
        ({"engine": "model.engine", "builder": "none"}, "leave one of them out"),
        ({"model": "missing.safetensors"}, "missing.safetensors"),
        ({"model": "model.engine"}, "is an engine already"),
        ({"model": "foreign.h5"}, r"\.h5"),
        ({"model": "cut.safetensors"}, r"cut\.safetensors"),
        ({"model": "cut.onnx"}, r"cut\.onnx"),
        ({"model": "half.onnx", "precision": "fp32"}, "fp16, and fp32 was asked for"),
        ({"model": "whole.onnx", "output": "whole.onnx", "precision": "fp16"}, "name another output"),
    ],
)
def test_a_wrong_request_is_refused(
    checkpoint: Path,
    exported: Path,
    fp16: onnx.ModelProto,
    contract: Contract,
    tmp_path: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    files = {
        "foreign.h5": b"\x89HDF",
        "cut.safetensors": checkpoint.read_bytes()[:1000],
        "cut.onnx": exported.read_bytes()[:-1000],
        "whole.onnx": exported.read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write_onnx(OnnxModel(fp16, replace(contract, precision="fp16")), tmp_path / "half.onnx")
    given: dict[str, Any] = {"model": checkpoint, "output": "model.onnx", "builder": "none", **changes}
    for name in ("model", "output", "engine"):
        if name in given:
            given[name] = tmp_path / given[name]
    with pytest.raises(RequestError, match=message):
        export(**given)
    assert not (tmp_path / "model.onnx").exists()


def experiment(contract: Contract, pictures: Path, **train: Any) -> Experiment:
    training = TrainConfig(
        train_dataset_path="", val_dataset_path="", enable_center_crop=False, optimizer=Optimizer(),
        reg_config=RegConfig(type="None"), lr_config=LrConfig(), **train,
    )  # fmt: skip
    evaluation = EvalConfig(eval_dataset_path=str(pictures))
    return Experiment(model_config=contract.model, train_config=training, eval_config=evaluation)


def test_the_specs_images_are_taken_and_its_pixels_agree(
    exported: Path, contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    result = export(
        exported, tmp_path / "model.onnx", experiment=experiment(contract, pictures), precision="fp16", builder="none"
    )
    assert result.parity is not None
    assert result.parity.source == f"12 of 12 images of {pictures}"


def test_a_spec_that_asks_for_other_pixels_is_refused_with_both_sides(
    checkpoint: Path, contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    other = experiment(contract, pictures, preprocess_mode="torch")
    with pytest.raises(ArtefactError, match="channel_order is rgb in the spec and bgr in the model"):
        export(checkpoint, tmp_path / "model.onnx", experiment=other, builder="none")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_answers_otherwise_is_not_kept(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that can run the engine; here an engine that answers for another ONNX file stands in for it."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnxruntime")
    other = tmp_path / "other" / "other.onnx"
    other.parent.mkdir()
    other.write_bytes(slip(read_onnx(exported), 1.0).proto.SerializeToString())

    def open_other(path: Path, provider: Any) -> Any:
        return open_engine(other, "cpu") if path.suffix == ".engine" else open_engine(path, provider)

    monkeypatch.setattr(parity, "open_engine", open_other)
    monkeypatch.setattr(tensorrt, "visible_gpu", lambda: Gpu("NVIDIA Test", "8.9"))
    with pytest.raises(TrtClsError, match="not answer as the network does"):
        export(exported, tmp_path / "model.onnx", builder="tensorrt-rtx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "other"]
