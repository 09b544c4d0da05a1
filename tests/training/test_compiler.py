"""A compiled network goes on with the kernels it began with; without a compiler there is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trt_cls import spec
from trt_cls.errors import RequestError
from trt_cls.spec.experiment import CosineLr, Experiment, Extensions, LrConfig, ModelConfig
from trt_cls.spec.extensions import ProgressiveResizing
from trt_cls.training import run
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

MODEL = ModelConfig(arch="alexnet", input_image_size="3,64,64")
CHECKPOINTING, RESIZING = (
    Extensions(gradient_checkpointing=True),
    Extensions(progressive_resizing=ProgressiveResizing()),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_training_is_resumed_to_the_byte(
    experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    asked = experiment(model=MODEL, lr_config=LrConfig(cosine=CosineLr(learning_rate=1e-4)))
    common: dict[str, Any] = {"device": "cpu"}
    train(asked, tmp_path / "whole", reporter=quiet(), compile_network=True, **common)
    stop = quiet(1, 2, partial(signal.raise_signal, signal.SIGINT))
    with pytest.raises(Interrupted):
        train(asked, tmp_path / "parts", reporter=stop, compile_network=True, **common)
    train(asked, tmp_path / "parts", reporter=quiet(), resume=True, **common)
    for name in ("training.csv", "weights/alexnet_002.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("start", [run.train, run.find_rate])
@pytest.mark.parametrize(
    ("options", "extensions", "found"),
    [
        ({"compile_network": True}, CHECKPOINTING, "--compile with extensions.gradient_checkpointing"),
        ({"compile_network": True}, RESIZING, "--compile with extensions.progressive_resizing"),
        (
            {"cuda_graphs": True},
            CHECKPOINTING,
            "--cuda-graphs on a CPU, with extensions.gradient_checkpointing; expected one GPU",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_images_are_listed(
    options: dict[str, bool],
    extensions: Extensions,
    found: str,
    start: Callable[..., Any],
    experiment: Callable[..., Experiment],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delattr(run, "open_setup")
    with pytest.raises(RequestError, match=f"^{found}"):
        start(experiment(extensions=extensions), tmp_path, device="cpu", **options)


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "spec.txt").write_text(spec.show(experiment(model=MODEL)))
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    arguments = ["train", "-e", str(tmp_path / "spec.txt"), "-r", str(tmp_path / "run"), "--device", "cpu", "--compile"]
    run = subprocess.run([sys.executable, "-m", "trt_cls", *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: --compile: torch can't compile the network here (")
    assert "Traceback" not in run.stderr
