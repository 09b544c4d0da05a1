from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import StandIn
from tiny_models import CONTRACT, SIZE, write_onnx

from trt_cls.artefacts.sidecar import Profile, Sidecar, file_sha256, read_sidecar, write_sidecar
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.api import make_logger
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.errors import ArtefactError, DeviceError, EngineError, MissingDependency
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
def test_without_a_gpu_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises((MissingDependency, DeviceError), match=r"trt-cls\[gpu\]|no NVIDIA GPU can be used"):
        open_engine(write_engine(tmp_path))


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


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A GPU of compute capability 8.7 with a "TensorRT 10.9" whose plans are ONNX files; all of it is freed."""
    gpu = StandIn((SMALLEST, LARGEST), (8, 7))
    gpu.install(monkeypatch)
    yield gpu
    gpu.assert_all_freed()


def write_stand_in(folder: Path, content: bytes | None = None, capability: str = "8.7") -> Path:
    plan = folder / "model.engine"
    plan.write_bytes(content or write_onnx(folder / "model.onnx").read_bytes())
    digest = file_sha256(plan)
    profile = Profile(SMALLEST, 4, LARGEST)
    write_sidecar(plan, Sidecar(CONTRACT, digest, "tensorrt", "10.9", (capability,), "", profile, "model.onnx", digest))
    return plan


def test_a_plan_for_another_gpu_is_refused_before_it_is_loaded(stand_in: StandIn, tmp_path: Path) -> None:
    plan = write_stand_in(tmp_path, b"not loaded", capability="8.9")
    expected = (
        r"by tensorrt 10\.9 for compute capability 8\.9, here is tensorrt 10\.9, Stand-in, compute capability 8\.7 "
        r"\(it holds no code for this GPU\); .*: trt-cls export -m "
    )
    with pytest.raises(ArtefactError, match=expected):
        TensorRtEngine(plan)


def test_what_tensorrt_says_of_a_plan_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\(it is not a plan\); .*: trt-cls export -m "):
        TensorRtEngine(write_stand_in(tmp_path, b"not a plan"))


def test_a_plan_whose_tensors_are_not_its_contracts_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    gray = write_onnx(tmp_path / "gray.onnx", channels=1).read_bytes()
    with pytest.raises(ArtefactError, match=r"its inputs are \{'input_1': \[1, 16, 16\]\}"):
        TensorRtEngine(write_stand_in(tmp_path, gray))


def test_a_run_that_fails_says_why(stand_in: StandIn, tmp_path: Path) -> None:
    with closing(TensorRtEngine(write_stand_in(tmp_path))) as engine:
        stand_in.fail_run_after = 0
        with pytest.raises(EngineError, match="tensorrt: running a batch failed: the run failed"):
            engine.infer(np.zeros((3, 3, SIZE, SIZE), np.float32))


def test_a_graph_that_does_not_launch_is_an_error(stand_in: StandIn, tmp_path: Path) -> None:
    images = np.zeros((3, 3, SIZE, SIZE), np.float32)
    with closing(TensorRtEngine(write_stand_in(tmp_path))) as engine:
        engine.infer(images)
        engine.infer(images)
        stand_in.libcuda.cuGraphLaunch = lambda graph, stream: 700
        with pytest.raises(EngineError, match="CUDA error 700"):
            engine.infer(images)


def test_graphs_follow_the_size_of_the_batch(stand_in: StandIn, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with (
        closing(TensorRtEngine(write_stand_in(tmp_path))) as engine,
        closing(open_engine(tmp_path / "model.onnx", "cpu", 1)) as reference,
    ):
        for count in (3, 3, 3, 4, 4, 4, 3, 3, 3, 5, 3, 3):
            images = random.random((count, 3, SIZE, SIZE), np.float32)
            np.testing.assert_array_equal(engine.infer(images), reference.infer(images))
    assert stand_in.launched_graphs == 3


@pytest.mark.parametrize("call", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
def test_where_capturing_fails_runs_go_on_without(stand_in: StandIn, tmp_path: Path, call: str) -> None:
    setattr(stand_in.libcuda, call, lambda *told: 1)
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    with closing(TensorRtEngine(write_stand_in(tmp_path))) as engine:
        first, *rest = [engine.infer(images) for _ in range(4)]
    assert all(np.array_equal(first, answers) for answers in rest)
    assert stand_in.launched_graphs == 0


def test_a_layer_that_can_not_be_captured_ends_the_capture(stand_in: StandIn, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    begin = stand_in.libcuda.cuStreamBeginCapture_v2

    def failing(stream: ctypes.c_void_p, mode: int) -> int:
        stand_in.fail_run_after = 0
        return begin(stream, mode)

    stand_in.libcuda.cuStreamBeginCapture_v2 = failing
    with closing(TensorRtEngine(write_stand_in(tmp_path))) as engine:
        first, second = engine.infer(images), engine.infer(images)
        stand_in.fail_run_after = -1
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, engine.infer(images))
    assert stand_in.launched_graphs == 0


def test_errors_are_kept_for_the_message_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = make_logger(trt)
    assert trt.Runtime(logger).deserialize_cuda_engine(b"no plan") is None
    assert logger.errors
    assert capfd.readouterr() == ("", "")
