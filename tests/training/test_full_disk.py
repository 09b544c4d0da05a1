"""A disk without room ends a training in one line; what was saved before is whole, and goes on once there is room."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from trt_cls.errors import TrtClsError
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import Experiment, ModelConfig
from trt_cls.training.run import train

Make = Callable[..., Experiment]
MODEL = ModelConfig(arch="squeezenet", input_image_size="3,32,32")


@pytest.fixture(scope="module", autouse=True)
def narrow_here() -> None:
    """No narrow networks: the files are large enough to fill a disk."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    train(experiment(model=MODEL), folder, device="cpu", reporter=quiet())
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def goes_on(folder: Path, reference: Path, experiment: Make, quiet: Any) -> None:
    """What is there is whole, and the training ends as if nothing had been."""
    assert not list(folder.rglob(".*"))
    assert load_checkpoint(folder / "weights/squeezenet_001.safetensors").contract.classes
    state = torch.load(folder / "train_state.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 1)
    train(experiment(model=MODEL), folder, device="cpu", reporter=quiet(), resume=True)
    for name in ("weights/squeezenet_002.safetensors", "weights/best.safetensors", "training.csv"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


def test_a_full_disk(small_disk: Path, reference: Path, experiment: Make, quiet: Any) -> None:
    results, filler = small_disk / "run", small_disk / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)) == 1 << 16:
                pass

    with pytest.raises(TrtClsError) as failure:
        train(experiment(model=MODEL), results, device="cpu", reporter=quiet(2, 2, fill), save_every=1)
    message = str(failure.value)
    assert "train_state.pt: can't be written, the disk is full (" in message
    assert "MB needed, 0.0 MB free" in message
    assert "--resume" in message
    assert "\n" not in message
    filler.unlink()
    goes_on(results, reference, experiment, quiet)


@pytest.mark.parametrize(("limit", "file"), [(5_000_000, "train_state.pt"), (1_000_000, "squeezenet_002.safetensors")])
def test_a_file_larger_than_allowed(
    limit: int, file: str, reference: Path, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    states = file == "train_state.pt"
    # the first step's state is written before the limit is there, the next state or checkpoint is not
    reporter = quiet(2, 2 if states else 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])))
    try:
        with pytest.raises(TrtClsError, match=rf"{file}: can't be written, larger than allowed \(.* MB needed"):
            train(experiment(model=MODEL), tmp_path, device="cpu", reporter=reporter, save_every=1 if states else 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if states:
        goes_on(tmp_path, reference, experiment, quiet)
