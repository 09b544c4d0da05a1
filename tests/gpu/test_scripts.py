"""The scripts in benchmarks/ that need a GPU: one line without one, and their own part on a GPU played by the CPU."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from gpu_stand_in import StandIn
from shared_data import photos
from tiny_models import CONTRACT, write_images, write_onnx

from kernels import host
from trt_cls.artefacts.sidecar import Profile, Sidecar, write_sidecar
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import image_folder
from trt_cls.gpu import Gpu, visible_gpu

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn((1, 4))
    stand_in.install(monkeypatch)
    monkeypatch.setattr("trt_cls.evaluation.stages.COPIED", 1 << 10)
    yield stand_in
    stand_in.assert_all_freed()


def test_both_ways_of_the_training_loader_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_cls.training.compute import choose_compute

    script = load("gpu_training_loader", monkeypatch)
    for name, value in (("BATCH", 8), ("WORKERS", 0), ("ROUNDS", 2), ("LEAST_IMAGES", 1)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.torch.cuda, "synchronize", lambda: None)
    small = Preprocessing(3, 24, 32, "center", "bilinear", "rgb", 255.0, (0.5,) * 3, (0.2,) * 3)
    rows = script.measure(image_folder(photos()), choose_compute("cpu", "fp32"), host.Augmentation(small), small)
    assert [row["augmented_on"] for row in rows] == ["GPU", "CPU"]
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert rows[0]["values_off"] == 0
    assert int(rows[1]["bytes_per_image"]) == 24 * 32 * 3 * 4


@pytest.mark.skipif(visible_gpu() is not None, reason="a GPU is there")
@pytest.mark.parametrize("name", ["gpu_preprocessing.py", "gpu_pipeline.py", "gpu_training_loader.py"])
def test_without_a_gpu_a_script_says_so_in_one_line(name: str) -> None:
    arguments = ["--onnx", "model.onnx"] if "pipeline" in name else []
    arguments += ["--images", "images"] if "preprocessing" not in name else []
    done = subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\n") == 1
    assert "no NVIDIA GPU" in done.stdout


def test_the_kernels_script_takes_no_more_than_numpy_pillow_and_pycuda() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(('safetensors', 'click', 'google', 'rich', 'onnx', 'torch')))"
    command = [sys.executable, "-c", f"{code}; import gpu_preprocessing"]
    subprocess.run(command, cwd=SCRIPTS, check=True)


def test_the_kernel_is_held_against_a_copy_and_against_pillow(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("gpu_preprocessing", monkeypatch)
    for name, value in (("BATCH", 2), ("ROUNDS", 2), ("REPEATS", 1)):
        monkeypatch.setattr(script, name, value)
    for chain in ("torchvision_chain", "cvcuda_chain", "dali_chain"):
        monkeypatch.setattr(script, chain, lambda images: __import__("a_package_that_is_not_there"))
    monkeypatch.setattr("trt_cls.evaluation.stages.GENERATED", 2)
    monkeypatch.setattr("trt_cls.evaluation.stages.REPEATS", 1)
    monkeypatch.setattr("trt_cls.evaluation.stages.ROUNDS", 1)
    (row,) = script.measure()
    assert (row["way"], row["share_of_values_off"], row["largest_difference_levels"]) == (
        "trt-cls kernel", "0.00000", "0.00",
    )  # fmt: skip
    assert float(row["copy_gb_per_second"]) >= 0


def test_the_pipeline_is_held_against_its_stages_and_onnx_runtime(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("gpu_pipeline", monkeypatch)
    onnx, plan = write_onnx(tmp_path / "model.onnx"), tmp_path / "tensorrt.engine"
    plan.write_bytes(onnx.read_bytes())
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    sidecar = Sidecar(CONTRACT, digest, "tensorrt", "10.9", ("8.0",), "", Profile(1, 1, 4), onnx.name, digest)
    write_sidecar(plan, sidecar)
    monkeypatch.setattr(script, "SECONDS", 0.0)
    monkeypatch.setattr(script, "engines", lambda onnx, folder: [plan])
    monkeypatch.setattr(script._results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(script._results, "visible_gpu", lambda: Gpu("Stand-in", "8.0"))
    images = write_images(tmp_path / "images", 2)
    assert script._results.run("gpu-pipeline", lambda: script.measure(onnx, images)) == 0
    with (tmp_path / "results" / "gpu-pipeline.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = {(row["cuda_graphs"], row["figure"]): float(row["value"]) for row in rows}
    assert figures["on", "top-1 agreement with ONNX Runtime"] == 1
    assert figures["on", "largest difference of a probability"] == 0
    assert {("on", "all images/s"), ("off", "engine images/s"), ("off", "decode p50 ms")} <= set(figures)
    assert {row["machine"].split(",")[0] for row in rows} == {"Stand-in"}
