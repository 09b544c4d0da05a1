"""The scripts in benchmarks/ that need a GPU: one line without one; tests/driver runs them."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support import cuda_on_cpu
from support.shared_data import photos
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import image_folder
from trt_cls.gpu import visible_gpu

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_both_ways_of_the_training_loader_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_cls.training.compute import choose_compute

    script = load("gpu_training_loader", monkeypatch)
    for name, value in (("BATCH", 8), ("WORKERS", 0), ("ROUNDS", 2), ("LEAST_IMAGES", 1)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.torch.cuda, "synchronize", lambda: None)
    small = Preprocessing(3, 24, 32, "center", "bilinear", "rgb", 255.0, (0.5,) * 3, (0.2,) * 3)
    rows = script.measure(image_folder(photos()), choose_compute("cpu", "fp32"), cuda_on_cpu.Augmentation(small), small)
    assert [row["augmented_on"] for row in rows] == ["GPU", "CPU"]
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert rows[0]["values_off"] == 0
    assert int(rows[1]["bytes_per_image"]) == 24 * 32 * 3 * 4


@pytest.mark.skipif(visible_gpu() is not None, reason="a GPU is there")
@pytest.mark.parametrize("name", ["gpu_preprocessing.py", "gpu_pipeline.py", "gpu_training_loader.py"])
def test_without_a_gpu_a_script_says_so_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--onnx", "model.onnx"] if "pipeline" in name else []
    arguments += ["--images", "images"] if "preprocessing" not in name else []
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (1, "")
    assert out.count("\n") == 1
    assert "no NVIDIA GPU" in out


def test_the_kernels_script_takes_no_more_than_numpy_pillow_and_pycuda() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(('safetensors', 'click', 'google', 'rich', 'onnx', 'torch')))"
    command = [sys.executable, "-c", f"{code}; import gpu_preprocessing"]
    subprocess.run(command, cwd=SCRIPTS, check=True)
