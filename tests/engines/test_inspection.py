from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.tiny_models import CONTRACT, RGB, write_onnx
from trt_cls.artefacts.sidecar import Profile, Sidecar, file_sha256, write_sidecar
from trt_cls.engines.inspection import PlanLayer, inspect
from trt_cls.errors import ArtefactError
from trt_cls.gpu import Gpu
from trt_cls.spec.experiment import ModelConfig


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"a plan")
    sidecar = Sidecar(
        contract=CONTRACT, sha256=file_sha256(path), builder="tensorrt", builder_version="11.4",
        compute_capabilities=("8.9",), gpu="L4", profile=Profile(1, 8, 32), onnx="model.onnx", onnx_sha256="0" * 64,
    )  # fmt: skip
    write_sidecar(path, sidecar)
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU with a TensorRT whose inspector says what is put under "Layers"."""
    says: dict[str, Any] = {"Layers": []}
    inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps(says))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: says.get("engine", engine))
    fake = SimpleNamespace(
        __version__="11.4",
        Runtime=lambda logger: runtime,
        ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1}),
        LayerInformationFormat=SimpleNamespace(JSON=1),
    )
    monkeypatch.setattr("trt_cls.engines.inspection.import_runtime", lambda builder: fake)
    monkeypatch.setattr("trt_cls.engines.inspection.visible_gpu", lambda: Gpu("L4", "8.9"))
    return says


def test_an_onnx_file_tells_of_itself(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "a.onnx")
    found = inspect(path)
    assert (found.bytes, found.sha256) == (path.stat().st_size, file_sha256(path))
    assert found.contract == CONTRACT
    assert (found.parameters, found.multiply_adds, found.weights) == (9, 9, {"float32": 9})
    assert [layer.operation for layer in found.layers] == ["GlobalAveragePool", "Flatten", "MatMul", "Softmax"]


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50", "ResNet50_Weights"), ("mobilenet_v2", "MobileNet_V2_Weights")]
)
def test_a_checkpoint_has_the_published_size_and_cost(tmp_path: Path, name: str, weights: str) -> None:
    """ResNet-50 at 224: 25,557,032 parameters, statistics left out, and 4.09 billion multiply-adds."""
    torchvision = pytest.importorskip("torchvision")
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    pixels = replace(RGB, height=224, width=224)
    model = ModelConfig(arch=f"torchvision/{name}", input_image_size="3,224,224")
    contract = replace(CONTRACT, model=model, preprocessing=pixels, classes=tuple(map(str, range(1000))))
    network = build(model, 1000)
    save_checkpoint(tmp_path / "a.safetensors", network, contract)
    found = inspect(tmp_path / "a.safetensors")
    statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.dim())
    published = getattr(torchvision.models, weights).DEFAULT.meta
    assert found.parameters == published["num_params"] + statistics
    assert found.multiply_adds is not None
    assert found.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=6e-4)  # stated with three decimals


def test_a_network_that_was_trained_for_int8_has_the_size_and_cost_of_one_that_was_not(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint
    from trt_cls.models.int8_layers import quantize_layers

    network = build(CONTRACT.model, len(CONTRACT.classes))
    save_checkpoint(tmp_path / "float.safetensors", network, CONTRACT)
    quantize_layers(network, {"conv1": (1.0,), "add_1": (2.0, 3.0), "predictions": (1.0,)})
    save_checkpoint(tmp_path / "int8.safetensors", network, replace(CONTRACT, precision="int8"))
    found, expected = inspect(tmp_path / "int8.safetensors"), inspect(tmp_path / "float.safetensors")
    assert (found.parameters, found.multiply_adds) == (expected.parameters, expected.multiply_adds)
    assert found.contract.precision == "int8"


def test_a_plan_is_described_by_its_sidecar(plan: Path, monkeypatch: pytest.MonkeyPatch, gpu: dict[str, Any]) -> None:
    monkeypatch.setattr("trt_cls.engines.inspection.visible_gpu", lambda: None)
    found = inspect(plan)
    assert found.sidecar
    assert (found.sidecar.builder_version, found.contract, found.plan) == ("11.4", CONTRACT, ())
    assert "only on a GPU" in found.missing


def test_a_plan_that_was_exchanged_is_refused(plan: Path) -> None:
    plan.write_bytes(b"another plan")
    with pytest.raises(ArtefactError, match="SHA-256"):
        inspect(plan)


def test_a_plans_layers_are_the_inspectors(plan: Path, gpu: dict[str, Any]) -> None:
    gpu["Layers"] = [
        {"Name": "conv1 + relu", "LayerType": "CaskConvolution", "Outputs": [{"Name": "y", "Format/Datatype": "Half"}]},
        "a layer of a plan without details",
    ]
    found = inspect(plan)
    assert found.missing == ""
    assert found.plan == (
        PlanLayer("conv1 + relu", "CaskConvolution", ("Half",)),
        PlanLayer("a layer of a plan without details", "", ()),
    )


def test_a_plan_of_another_gpu_still_tells_its_contract(plan: Path, gpu: dict[str, Any]) -> None:
    gpu["engine"] = None
    assert "can't load it here" in inspect(plan).missing


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_tensorrt_has_an_inspector(name: str) -> None:
    trt = pytest.importorskip(name)
    assert hasattr(trt.ICudaEngine, "create_engine_inspector")
    assert hasattr(trt.EngineInspector, "get_engine_information")
    assert hasattr(trt.LayerInformationFormat, "JSON")
