from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import onnx
import pytest

from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.artefacts.sidecar import Parity, Profile, Sidecar, read_sidecar, sidecar_path
from trt_cls.contract import Contract
from trt_cls.engines.sidecar import read_plan
from trt_cls.errors import DeviceError, ExportError, RequestError
from trt_cls.export import tensorrt
from trt_cls.export.tensorrt import (
    DEFAULT_PROFILE,
    BuilderChoice,
    choose_builder,
    compute_capabilities,
    plan_from_onnx,
    profile_from_batches,
    require_gpu_of_plan,
    write_engine,
)
from trt_cls.gpu import Gpu


@pytest.fixture(scope="module")
def rtx() -> BuilderChoice:
    pytest.importorskip("tensorrt_rtx")
    choice, _ = choose_builder("tensorrt-rtx", required=True)
    assert choice is not None
    return choice


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_it_on_any_machine(
    rtx: BuilderChoice, precision: str, contract: Contract, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: onnx.ModelProto = request.getfixturevalue(precision)
    write_onnx(OnnxModel(model, contract), tmp_path / "model.onnx")
    plan = plan_from_onnx(tmp_path / "model.onnx", contract, rtx, DEFAULT_PROFILE)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert len(plan) > 0.9 * weights
    assert not plan.lstrip().startswith(b"{"), "nothing may stand before the plan"


def test_the_default_compute_capabilities_are_those_of_the_plan(rtx: BuilderChoice) -> None:
    assert compute_capabilities(rtx) == ("8.0", "8.6", "8.9", "12.0")


def test_a_plan_of_tensorrt_is_for_the_gpu_that_built_it(rtx: BuilderChoice) -> None:
    assert compute_capabilities(BuilderChoice("tensorrt", rtx.module, Gpu("Orin", "8.7"), "")) == ("8.7",)


def test_a_file_that_tensorrt_can_not_read_is_an_error_with_its_own_words(
    rtx: BuilderChoice, contract: Contract, tmp_path: Path
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ExportError, match=r"junk\.onnx: .*[Pp]arse"):
        plan_from_onnx(tmp_path / "junk.onnx", contract, rtx, DEFAULT_PROFILE)


def test_refused_batch_sizes_are_an_error(
    rtx: BuilderChoice, contract: Contract, fp32: onnx.ModelProto, tmp_path: Path
) -> None:
    write_onnx(OnnxModel(fp32, contract), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="refused the batch sizes 8, 4, 2"):
        plan_from_onnx(tmp_path / "model.onnx", contract, rtx, Profile(8, 4, 2))


def test_every_name_that_is_used_exists_in_the_bindings(rtx: BuilderChoice) -> None:
    """Read off the source, so that a name added there is checked here."""
    trt = rtx.module
    objects = {
        "trt": trt,
        "builder": trt.Builder,
        "config": trt.IBuilderConfig,
        "parser": trt.OnnxParser,
        "optimization": trt.IOptimizationProfile,
    }
    seen = set()
    for node in ast.walk(ast.parse(inspect.getsource(tensorrt))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in objects:
            assert hasattr(objects[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
            seen.add(f"{node.value.id}.{node.attr}")
    assert {"builder.build_serialized_network", "config.add_optimization_profile", "trt.BuilderFlag"} <= seen
    assert hasattr(trt.BuilderFlag, "TF32")
    assert hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def test_a_plan_is_for_the_gpus_that_nvidia_calls_portable(rtx: BuilderChoice) -> None:
    """By default for 8.0, 8.6, 8.9 and 12.0; Turing (7.5) and GB10 (12.1) take a plan of their own, say its guide to
    engines built without a GPU and its support matrix. It has no Hopper and no Jetson."""
    known = {name for name in rtx.module.ComputeCapability.__members__ if name.startswith("SM")}
    assert set(tensorrt.RTX_CAPABILITIES) == known - {"SM75", "SM121"}
    assert tensorrt.compute_capabilities(rtx) == ("8.0", "8.6", "8.9", "12.0")


@pytest.mark.parametrize("gpu", [None, Gpu("NVIDIA H200", "9.0")])
def test_an_engine_is_not_run_on_a_gpu_that_it_was_not_built_for(
    sidecar: Sidecar, gpu: Gpu | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "visible_gpu", lambda: gpu)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU|H200 .*9\.0.*8\.9"):
        require_gpu_of_plan(sidecar)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), (1, 8, 32)),
        ((None, None, 4), (1, 4, 4)),
        ((None, None, 1), (1, 1, 1)),
        ((16, None, None), (16, 16, 32)),
        ((None, 64, None), (1, 64, 64)),
        ((2, 3, 4), (2, 3, 4)),
    ],
)
def test_batch_sizes_left_out_follow_those_given(
    given: tuple[int | None, int | None, int | None], expected: tuple[int, int, int]
) -> None:
    assert profile_from_batches(*given) == Profile(*expected)


@pytest.mark.parametrize("given", [(4, 2, 8), (1, 16, 8), (0, 1, 1), (8, None, 4)])
def test_batch_sizes_out_of_order_are_refused(given: tuple[int | None, int | None, int | None]) -> None:
    with pytest.raises(RequestError, match="1 ≤ min ≤ opt ≤ max"):
        profile_from_batches(*given)


@pytest.fixture
def sidecar(contract: Contract) -> Sidecar:
    digest = hashlib.sha256(b"plan").hexdigest()
    return Sidecar(contract, digest, "tensorrt-rtx", "1.7", ("8.9",), "", DEFAULT_PROFILE, "model.onnx", digest)


def test_plan_and_sidecar_appear_together_with_what_the_check_measured(sidecar: Sidecar, tmp_path: Path) -> None:
    parity = Parity(3, 1.0, 0.002, "3 images")
    seen: list[bytes] = []

    def check(draft: Path) -> Parity:
        seen.append(read_plan(draft, read_sidecar(draft)))
        assert not (tmp_path / "model.engine").exists()
        return parity

    write_engine(b"plan", tmp_path / "model.engine", sidecar, check)
    assert seen == [b"plan"]
    assert (tmp_path / "model.engine").read_bytes() == b"plan"
    assert read_sidecar(tmp_path / "model.engine").parity == parity
    assert {path.name for path in tmp_path.iterdir()} == {"model.engine", "model.engine.json"}


def test_a_failed_check_leaves_what_was_there(sidecar: Sidecar, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    write_engine(b"plan", engine, sidecar, lambda draft: None)
    before = engine.read_bytes(), sidecar_path(engine).read_bytes()

    def check(draft: Path) -> Parity:
        raise ExportError("out of bounds")

    with pytest.raises(ExportError):
        write_engine(b"other", engine, sidecar, check)
    assert (engine.read_bytes(), sidecar_path(engine).read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2
