"""Extensions in several processes: the numbers of one process, and one network that all of them validate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.forked import Forked
from trt_cls import spec
from trt_cls.data.folder import image_folder
from trt_cls.data.stream import stream
from trt_cls.distributed.processes import ALONE
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    Sgd,
)
from trt_cls.training.compute import choose_compute
from trt_cls.training.optimization import penalty
from trt_cls.training.validation import BrokenImages, validate

Make = Callable[..., Experiment]
NO_NORM = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_bias=True)
CPU = choose_compute("cpu", "fp32")


def trained_by(forked: Forked, processes: int, request: Experiment, folder: Path) -> Path:
    file = folder.parent / f"{folder.name}.txt"
    file.write_text(spec.show(request))
    arguments = ["train", "-e", file, "-r", folder, "--device", "cpu"]
    done = forked.run(processes, arguments, environment={"NARROW": "1"})
    assert done.returncode == 0, done.stderr
    return folder / "weights"


@pytest.mark.slow
def test_processes_extend_a_training_as_one_with_the_whole_batch_does(
    experiment: Make, forked: Forked, tmp_path: Path
) -> None:
    asked = Extensions(ema_decay=0.8, clip_grad_norm=1.0, accumulate_steps=2, average_checkpoints=2)
    weights = []
    for processes in (1, 2):
        request = experiment(
            model=NO_NORM, extensions=asked, batch_size_per_gpu=4 // processes, mixup_alpha=0.0, n_epochs=3,
            enable_random_crop=False, disable_horizontal_flip=True, optimizer=Optimizer(sgd=Sgd(momentum=0.0)),
            lr_config=LrConfig(cosine=CosineLr(learning_rate=0.01 / processes)),
        )  # fmt: skip
        weights.append(trained_by(forked, processes, request, tmp_path / str(processes)))
    for name in ("resnet_003", "averaged"):
        one, two = (load_file(folder / f"{name}.safetensors") for folder in weights)
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "extensions", [NO_EXTENSIONS, Extensions(ema_decay=0.8, average_checkpoints=1)], ids=["off", "on"]
)
def test_processes_validate_the_network_that_is_saved(
    extensions: Extensions, experiment: Make, forked: Forked, tmp_path: Path
) -> None:
    request = experiment(batch_size_per_gpu=4, extensions=extensions)
    weights = trained_by(forked, 2, request, tmp_path / "run")
    assert request.train_config is not None
    val = image_folder(Path(request.train_config.val_dataset_path))
    reported = [json.loads(line) for line in (tmp_path / "run/status.json").read_text().splitlines()]
    names = ["resnet_001", "resnet_002"] + ["averaged"] * bool(extensions.average_checkpoints)
    for name, entry in zip(names, reported[1:-1], strict=True):
        checkpoint = load_checkpoint(weights / f"{name}.safetensors")
        batches = stream(val.samples, checkpoint.contract.preprocessing, batch_size=4, workers=0)
        found = validate(checkpoint.module, batches, CPU, BrokenImages(val), ALONE)
        loss = found.loss + penalty(request.train_config.reg_config, checkpoint.module).value().item()
        # each process's own statistics differ by far more than sums in another order
        assert entry["kpi"] == {"validation_accuracy": found.accuracy, "validation_loss": pytest.approx(loss, rel=1e-5)}
