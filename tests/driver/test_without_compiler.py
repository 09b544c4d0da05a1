"""A machine with a driver, NVRTC, TensorRT and a pycuda built elsewhere: no nvcc, no host compiler, no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from driver import stand_in
from driver.stand_in import Driver, write_plan
from support.tiny_models import SIZE, write_images
from trt_cls.preprocessing.nvrtc import nvrtc

stand_in.require()
pytestmark = pytest.mark.driver
MODEL = f'model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{SIZE},{SIZE}" }}'
RUN = """
import sys
sys.modules["torch"] = None
from trt_cls.cli import main
sys.exit(main(sys.argv[1:]))
"""
WITHOUT_WHEELS = """
import site
site.getsitepackages = lambda: []
"""
"""NVRTC is not found among the packages."""


def jetpack(folder: Path) -> Path:
    """A CUDA Toolkit as JetPack lays it out, with the NVRTC that is here."""
    library = Path(nvrtc()._name)
    (folder / "lib64").mkdir(parents=True)
    for part in library.parent.glob("libnvrtc*.so*"):
        if "alt" not in part.name:
            full = folder / "lib64" / f"{part.name}.0.88"
            shutil.copy(part, full)
            full.with_name(part.name).symlink_to(full.name)
    return folder


@stand_in.lazy
@pytest.mark.parametrize("where", ["a wheel", "a toolkit"])
def test_evaluate_runs_an_engine_without_any_compiler_but_nvrtc(driver: Driver, tmp_path: Path, where: str) -> None:
    if nvrtc() is None:
        pytest.skip("no NVRTC library")
    plan, photos = write_plan(tmp_path, (1, 4)), write_images(tmp_path / "photos", 3)
    (tmp_path / "spec.txt").write_text(f'{MODEL} eval_config {{ eval_dataset_path: "{photos}" top_k: 1 }}')
    (tmp_path / "bin").mkdir()
    without = {
        "PATH": str(tmp_path / "bin"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CUDA_HOME": "",
        "CUDA_PATH": "",
    }
    begin = ""
    if where == "a toolkit":
        without["CUDA_HOME"], begin = str(jetpack(tmp_path / "cuda")), WITHOUT_WHEELS
    command = ["evaluate", "-e", str(tmp_path / "spec.txt"), "-m", str(plan), "--executor", "cuda"]
    done = subprocess.run(
        [sys.executable, "-c", begin + RUN, *command],
        env=os.environ | without,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "top-1 accuracy     1.0000" in done.stdout
    assert list((tmp_path / "cache").rglob("preprocess-sm_90-*.cubin")), "it was compiled here and now"
