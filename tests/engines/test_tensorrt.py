from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import CONTRACT, SIZE, write_onnx

from trt_cls.engines import open_engine
from trt_cls.engines.sidecar import Profile, Sidecar, file_sha256, write_sidecar
from trt_cls.engines.tensorrt import make_logger, split
from trt_cls.errors import ArtefactError, DeviceError, MissingDependency
from trt_cls.gpu import visible_gpu

NO_GPU = find_spec("pycuda") is None or visible_gpu() is None
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
    sidecar = Sidecar(
        contract=CONTRACT,
        sha256=file_sha256(plan),
        builder="tensorrt-rtx",
        builder_version=trt.__version__,
        compute_capabilities=("8.0",),
        gpu="",
        profile=Profile(SMALLEST, 4, LARGEST),
        onnx=onnx.name,
        onnx_sha256=file_sha256(onnx),
    )
    write_sidecar(plan, sidecar)
    return plan


@pytest.mark.parametrize(
    ("images", "batches"),
    [(1, [(2, 1)]), (2, [(2, 2)]), (5, [(5, 5)]), (6, [(5, 5), (2, 1)]), (12, [(5, 5), (5, 5), (2, 2)])],
)
def test_batches_fit_the_profile_and_no_image_is_lost(images: int, batches: list[tuple[int, int]]) -> None:
    pixels = np.arange(1, images + 1, dtype=np.float32).reshape(images, 1, 1, 1)
    parts = list(split(pixels, SMALLEST, LARGEST))
    assert [(len(batch), count) for batch, count in parts] == batches
    np.testing.assert_array_equal(np.concatenate([batch[:count] for batch, count in parts]), pixels)


@pytest.mark.skipif(not NO_GPU, reason="a GPU is there")
def test_without_a_gpu_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises((MissingDependency, DeviceError), match=r"trt-cls\[gpu\]|no NVIDIA GPU can be used"):
        open_engine(write_engine(tmp_path))


def test_a_damaged_plan_is_refused_before_any_gpu_is_asked_for(tmp_path: Path) -> None:
    plan = write_engine(tmp_path)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="SHA-256"):
        open_engine(plan)


def test_errors_are_kept_for_the_message_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt)
    assert trt.Runtime(logger).deserialize_cuda_engine(b"no plan") is None
    assert logger.errors
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_the_runtime_has_every_name_that_is_used(package: str) -> None:
    trt: Any = pytest.importorskip(package)
    used = {
        trt: "ILogger Runtime TensorIOMode float32 __version__",
        trt.ILogger: "ERROR INTERNAL_ERROR",
        trt.TensorIOMode: "INPUT OUTPUT",
        trt.Runtime: "deserialize_cuda_engine",
        trt.ICudaEngine: "create_execution_context num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape "
        "get_tensor_dtype get_tensor_profile_shape",
        trt.IExecutionContext: "set_input_shape set_tensor_address execute_async_v3",
    }
    assert [name for owner, names in used.items() for name in names.split() if not hasattr(owner, name)] == []


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU, reason="no NVIDIA GPU, or no pycuda")
@pytest.mark.parametrize("images", [1, 4, 12])
def test_answers_as_onnx_runtime_does(tmp_path: Path, images: int) -> None:
    plan = write_engine(tmp_path)
    pixels = np.random.default_rng(0).random((images, 3, SIZE, SIZE), np.float32)
    expected = open_engine(tmp_path / "model.onnx", "cpu").infer(pixels)
    engine = open_engine(plan)
    np.testing.assert_allclose(engine.infer(pixels), expected, atol=1e-5)  # float32 on both sides
    engine.close()
