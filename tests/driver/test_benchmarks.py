"""What measures a GPU runs over the stand-in driver: its figures are nobody's, its answers are right."""

from __future__ import annotations

import csv
import importlib.util
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from driver import stand_in
from driver.stand_in import Driver, write_plan
from support.tiny_models import write_images, write_onnx
from trt_cls.artefacts.sidecar import Profile
from trt_cls.cli import main
from trt_cls.data.folder import Sample, list_images
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.evaluation.benchmark import benchmark

stand_in.require()
pytestmark = pytest.mark.driver
SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COPIED", 1 << 10), ("REPEATS", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(f"trt_cls.evaluation.stages.{name}", value)
    monkeypatch.setattr("trt_cls.evaluation.stages.GENERATED", 2)


def load(name: str, monkeypatch: pytest.MonkeyPatch, **constants: object) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    return module


def test_the_kernel_is_held_against_a_copy_and_against_pillow(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("gpu_preprocessing", monkeypatch, BATCH=2, ROUNDS=2, REPEATS=1)
    for chain in ("torchvision_chain", "cvcuda_chain", "dali_chain"):
        monkeypatch.setattr(script, chain, lambda images: __import__("a_package_that_is_not_there"))
    (row,) = script.measure()
    assert (row["way"], row["share_of_values_off"], row["largest_difference_levels"]) == (
        "trt-cls kernel", "0.00000", "0.00",
    )  # fmt: skip
    assert float(row["copy_gb_per_second"]) >= 0


def test_a_few_launches_for_a_profiler_leave_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    before = driver.count("launches")
    load("gpu_preprocessing", monkeypatch, BATCH=2).measure_alone()
    assert driver.count("launches") - before == 4


def test_the_pipeline_is_held_against_its_stages_and_onnx_runtime(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("gpu_pipeline", monkeypatch, SECONDS=0.0, PROFILE=Profile(1, 2, 4), BATCH=4)
    monkeypatch.setattr(script._results, "RESULTS", tmp_path / "results")
    onnx, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 2)
    assert script._results.run("gpu-pipeline", lambda: script.measure(onnx, images)) == 0
    with (tmp_path / "results" / "gpu-pipeline.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["engine"] for row in rows} == {"tensorrt", "tensorrt-rtx"}
    figures = {(row["cuda_graphs"], row["figure"]): float(row["value"]) for row in rows}
    assert figures["on", "top-1 agreement with ONNX Runtime"] == 1
    assert figures["on", "largest difference of a probability"] < 1e-6
    assert {("on", "all images/s"), ("off", "engine images/s"), ("off", "decode p50 ms")} <= set(figures)
    assert {row["machine"].split(",")[0] for row in rows} == {"CPU in the role of a GPU"}


def test_the_stages_work_side_by_side_and_the_kernel_has_its_own_floor(driver: Driver, tmp_path: Path) -> None:
    samples = [Sample(path) for path in list_images(write_images(tmp_path / "images", 3, 40))]
    with closing(TensorRtEngine(write_plan(tmp_path, (1, 3)))) as engine:
        result = benchmark(engine, samples, batch_size=8, workers=2, seconds=0)
    assert [stage.stage for stage in result.stages] == ["decode", "preprocess", "engine", "all"]
    assert [stage.stage for stage in result.stages if stage.limits] == ["decode", "preprocess", "engine"]
    assert (result.executor, result.batch_size) == ("cuda", 3)
    assert result.kernel is not None
    assert result.kernel.share > 0
    assert result.to_dict()["kernel"]["share"] == result.kernel.share


def test_doctor_finds_the_gpu_and_pycuda(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    lines = " ".join(capsys.readouterr().out.split())
    assert "CPU in the role of a GPU, compute capability 9.0" in lines
    assert "pycuda" in lines
