from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support.tiny_models import CONTRACT, SIZE, write_onnx
from trt_cls.artefacts.sidecar import Profile, Sidecar, file_sha256, read_sidecar, write_sidecar
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.api import import_runtime, make_logger
from trt_cls.errors import ArtefactError, DeviceError
from trt_cls.gpu import visible_gpu

SMALLEST, LARGEST = 2, 5


def write_engine(folder: Path) -> Path:
    """A TensorRT-RTX plan of the tiny model; building one takes no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    onnx = write_onnx(folder / "model.onnx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR)).parse(onnx.read_bytes())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("input_1", *((batch, 3, SIZE, SIZE) for batch in (SMALLEST, 4, LARGEST)))
    assert config.add_optimization_profile(profile) == 0
    plan = folder / "model.engine"
    plan.write_bytes(builder.build_serialized_network(network, config))
    gpu = visible_gpu()
    sidecar = Sidecar(
        contract=CONTRACT,
        sha256=file_sha256(plan),
        builder="tensorrt-rtx",
        builder_version=trt.__version__,
        compute_capabilities=(gpu.compute_capability if gpu else "8.0",),
        gpu="",
        profile=Profile(SMALLEST, 4, LARGEST),
        onnx=onnx.name,
        onnx_sha256=file_sha256(onnx),
    )
    write_sidecar(plan, sidecar)
    return plan


@pytest.mark.skipif(visible_gpu() is not None, reason="a GPU is there")
def test_without_a_gpu_the_fix_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU can be used here; .* -m .*/model\.onnx$"):
        open_engine(write_engine(tmp_path))


@pytest.mark.skipif(visible_gpu() is not None, reason="a GPU is there")
def test_without_a_gpu_nobody_is_asked_to_install_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match="no NVIDIA GPU can be used here"):
        import_runtime("tensorrt")


def test_a_damaged_plan_is_refused_before_any_gpu_is_asked_for(tmp_path: Path) -> None:
    plan = write_engine(tmp_path)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(
        ArtefactError, match=rf"SHA-256 .*: trt-cls export -m {tmp_path}/model\.onnx .* --engine {plan}"
    ):
        open_engine(plan)


def test_a_plan_of_another_version_is_refused_before_any_gpu_is_asked_for(tmp_path: Path) -> None:
    plan = write_engine(tmp_path)
    sidecar = read_sidecar(plan)
    write_sidecar(plan, replace(sidecar, builder_version="1.0"))
    expected = (
        rf"was built by tensorrt-rtx 1\.0 for .* here is tensorrt-rtx {sidecar.builder_version}, .*"
        rf"trt-cls export -m {tmp_path}/model\.onnx -o {tmp_path}/model\.onnx --engine {plan} "
        r"--builder tensorrt-rtx --min-batch 2 --opt-batch 4 --max-batch 5$"
    )
    with pytest.raises(ArtefactError, match=expected):
        open_engine(plan)


def test_errors_are_kept_for_the_message_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt)
    assert trt.Runtime(logger).deserialize_cuda_engine(b"no plan") is None
    assert logger.errors
    assert capfd.readouterr() == ("", "")
