"""What only a GPU can show of training: its kernel's images there, between torch's streams, and what is learnt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.pixel_reference import preprocessing_of
from support.quiet import Quiet
from support.shared_data import photos
from support.step_options import OPTIMIZERS, OTHERS, TRANSFORMER, StepOptions
from support.timm_optimizers import of_timm
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import TrainingBatch, TrainingLoader
from trt_cls.export.export import export
from trt_cls.gpu import visible_gpu
from trt_cls.spec.experiment import (
    NO_EXTENSIONS,
    CosineLr,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    Optimizer,
    Quantization,
    RegConfig,
    Sgd,
    TrainConfig,
)
from trt_cls.spec.extensions import AdamW, Lamb, Lion, ModernOptimizer, Muon
from trt_cls.training.compute import choose_compute, repeatable
from trt_cls.training.learner import Learner
from trt_cls.training.optimization import optimizer, set_rate
from trt_cls.training.prefetch import open_augmentation, prefetched
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

if visible_gpu() is None or find_spec("pycuda") is None:
    pytest.skip("no NVIDIA GPU, or no pycuda", allow_module_level=True)  # one line of the report

pytestmark = pytest.mark.gpu
STEPS = OPTIMIZERS | OTHERS | {"transformer": TRANSFORMER}
FITTING, TOO_LARGE = 2.0**7, 2.0**60
"""Of what the scaler of fp16 multiplies the loss by."""
EXTENSIONS = [NO_EXTENSIONS, Extensions(random_erasing=0.5, cutmix_alpha=1.0)]
DESCRIPTIONS = [
    preprocessing_of("rgb", "bilinear", "center", "224x224", "torch"),
    preprocessing_of("rgb", "bicubic", "none", "160x112", "caffe"),
    preprocessing_of("gray", "bicubic", "center", "75x130", "caffe"),
]
SHIFTED = Extensions(crop_padding=8, random_erasing=0.5)


def config(folder: ImageFolder, extensions: Extensions = NO_EXTENSIONS) -> TrainConfig:
    return TrainConfig(
        train_dataset_path=str(folder.root),
        val_dataset_path=str(folder.root),
        batch_size_per_gpu=16,
        n_epochs=1,
        n_workers=0,  # a process takes longer to start than a short training
        enable_random_crop=not extensions.crop_padding,
        optimizer=Optimizer(sgd=Sgd()),
        reg_config=RegConfig(type="None"),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=0.02)),
    )


def whole(folder: ImageFolder, preprocessing: Preprocessing, extensions: Extensions) -> Iterator[TrainingBatch]:
    yield from TrainingLoader(folder, preprocessing, config(folder, extensions), extensions=extensions).epoch(1)


@pytest.mark.parametrize("extensions", [*EXTENSIONS, SHIFTED], ids=["mixup", "erasing and cutmix", "shift and erasing"])
@pytest.mark.parametrize("preprocessing", DESCRIPTIONS, ids=["color", "bicubic", "gray"])
def test_batches_are_those_of_the_cpu_to_the_bit(preprocessing: Preprocessing, extensions: Extensions) -> None:
    folder = image_folder(photos())
    compute = choose_compute("cuda", "fp32")
    kernel = open_augmentation(compute, preprocessing, extensions)
    assert kernel is not None, "the log says why"
    asked = replace(config(folder, extensions), n_workers=2)
    packed = TrainingLoader(folder, preprocessing, asked, extensions=extensions, pack=True)
    with closing(kernel):
        found = []
        for batch in prefetched(packed.epoch(1), compute, kernel):
            # what a step does meanwhile, on the stream that it does it on
            torch.randn(1024, 1024, device="cuda") @ torch.randn(1024, 1024, device="cuda")
            found.append((batch.images.cpu().contiguous(), batch.targets.cpu()))
    for (images, targets), expected in zip(found, whole(folder, preprocessing, extensions), strict=True):
        np.testing.assert_array_equal(images.numpy().view(np.uint32), expected.images.numpy().view(np.uint32))
        np.testing.assert_array_equal(targets.numpy().view(np.uint32), expected.targets.numpy().view(np.uint32))


def test_an_epoch_ends_in_the_same_weights_wherever_images_are_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(photos())
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,64,64", use_batch_norm=True)
    asked = Experiment(model_config=model, train_config=config(folder), extensions=EXTENSIONS[1])
    by_gpu = train(asked, tmp_path / "gpu", device="cuda", precision="fp32")

    def none(*given: Any) -> None:
        return None

    monkeypatch.setattr("trt_cls.training.setup.open_augmentation", none)
    by_cpu = train(asked, tmp_path / "cpu", device="cuda", precision="fp32")
    assert by_gpu.last.read_bytes() == by_cpu.last.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_for_int8_ends_the_same_each_time_and_its_file_answers_as_it(precision: str, tmp_path: Path) -> None:
    folder = image_folder(photos())
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,64,64", use_batch_norm=True)
    before = train(Experiment(model_config=model, train_config=config(folder)), tmp_path / "before", device="cuda")
    further = replace(config(folder), pretrained_model_path=str(before.last))
    quantized = Extensions(quantization=Quantization())
    asked = Experiment(model_config=model, train_config=further, extensions=quantized)
    one, two = (train(asked, tmp_path / name, device="cuda", precision=precision) for name in ("one", "two"))
    assert one.last.read_bytes() == two.last.read_bytes()
    written = export(one.last, tmp_path / "model.onnx", images=folder.root, builder="none")  # refused if it does not
    assert written.precision == "int8"


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's: of the mode, and of algorithms that do not repeat
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_not_wait_for_the_gpu(name: str, precision: str) -> None:
    # the driver's own account, of what is called within torch's operators too; see tests/training/test_host_syncs.py
    if name == "transformer":
        pytest.importorskip("timm")
    check_that_no_step_waits(STEPS[name], precision)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["sgd", "muon", "ema_decay and clip_grad_norm"])
def test_a_step_that_is_replayed_does_not_wait_either(name: str) -> None:
    options = STEPS.get(name, StepOptions(Extensions(ema_decay=0.9, clip_grad_norm=1.0)))
    check_that_no_step_waits(options, "fp16", cuda_graphs=True)


def check_that_no_step_waits(options: StepOptions, precision: str, **given: Any) -> None:
    compute = choose_compute("cuda", precision)
    with repeatable(compute):
        learner, batch = options.learner(compute, **given), options.batch(compute.device)
        for number in range(4):  # the first two make handles, workspaces and the optimizer's state
            torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")
            try:
                options.step(learner, batch, number)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert learner.metrics().images == 16


def kept(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of the weights by name, and of the optimizer's state by the weight's name and its own."""
    optimizer = learner._optimizer.state
    states = {name: {"": w} | optimizer.get(w, {}) for name, w in learner.model.named_parameters()}
    return {f"{name} {key}": value.clone() for name, state in states.items() for key, value in state.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_in_fp16_that_overflows_changes_nothing(name: str) -> None:
    options, compute = OPTIMIZERS[name], choose_compute("cuda", "fp16")
    with repeatable(compute):
        learner, batch = options.learner(compute), options.batch(compute.device)
        for number, scale in enumerate((TOO_LARGE, FITTING, TOO_LARGE, FITTING)):
            learner._scaler.load_state_dict(learner._scaler.state_dict() | {"scale": scale})
            before = kept(learner)
            options.step(learner, batch, number)
            after = kept(learner)
            begun = {key: before.get(key, torch.zeros_like(value)) for key, value in after.items()}
            same = {key for key, value in after.items() if torch.equal(value, begun[key])}
            assert same == set(after) if scale == TOO_LARGE else "predictions.weight " not in same


def matrices() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).cuda()) for shape in ((24, 8), (16, 64))]


COMMON: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
REFERENCES: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, momentum=0.9, **COMMON),
    "adam": lambda weights: torch.optim.Adam(weights, eps=1e-7, **COMMON),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, alpha=0.9, eps=1e-7, **COMMON),
    "adamw": lambda weights: torch.optim.AdamW(weights, **COMMON),
    "lamb": lambda weights: of_timm("Lamb")(weights, eps=1e-6, **COMMON),
    "lion": lambda weights: of_timm("Lion")(weights, betas=(0.9, 0.99), **COMMON),
    "muon": lambda weights: torch.optim.Muon(weights, adjust_lr_fn="match_rms_adamw", **COMMON),
}
ROUNDING_OF_MUON = 5 * 0.01 * 0.2 * 8 / 2**9
"""Of bfloat16, in which its matrix is, in five steps with matrices of up to 64 columns."""


@pytest.mark.parametrize("name", list(REFERENCES))
def test_steps_are_those_of_torch_and_timm(name: str) -> None:
    ours, theirs, options = matrices(), matrices(), OPTIMIZERS[name]
    asked = options.extensions.optimizer or options.config["optimizer"]
    made = optimizer(asked, [{"params": ours, "weight_decay": 0.1, "orthogonal": True}]), REFERENCES[name](theirs)
    set_rate(made[0], 0.01)
    for step in range(5):
        torch.manual_seed(step)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for each in made:
            each.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=ROUNDING_OF_MUON if name == "muon" else 1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that the gradient of max pooling may not repeat
@pytest.mark.parametrize(
    "arch", ["alexnet", "googlenet", "squeezenet", "efficientnet_b0", "mobilenet_v2", "timm/vit_tiny_patch16_224"]
)
def test_steps_repeat_to_the_bit(arch: str) -> None:
    """In networks with windows of pooling that overlap, depthwise kernels, dropout and attention."""
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    model = ModelConfig(arch=arch, input_image_size="3,64,64", use_batch_norm=True)
    options, compute = StepOptions(model=model), choose_compute("cuda", "bf16")
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        with repeatable(compute):
            learner, batch = options.learner(compute), options.batch(compute.device)
            for number in range(3):
                options.step(learner, batch, number)
        found.append(kept(learner))
    assert [key for key, value in found[0].items() if not torch.equal(value, found[1][key])] == []


RESUMED = {
    "muon": (
        ModelConfig(arch="resnet", n_layers=10, input_image_size="3,64,64", use_batch_norm=True),
        Extensions(
            optimizer=ModernOptimizer(muon=Muon()), layer_decay=0.8, ema_decay=0.9,
            trivial_augment=True, cutmix_alpha=1.0, random_erasing=0.5,
        ),
        "bf16",
    ),
    "lion": (
        ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True),
        Extensions(optimizer=ModernOptimizer(lion=Lion()), bce_loss=True, repeated_augment=2),
        "fp16",
    ),
    "adamw": (
        ModelConfig(arch="efficientnet_b0", input_image_size="3,32,32", use_batch_norm=True),
        Extensions(optimizer=ModernOptimizer(adamw=AdamW()), drop_path=0.2, random_erasing=0.5),
        "bf16",
    ),
    "lamb": (
        ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True),
        Extensions(optimizer=ModernOptimizer(lamb=Lamb()), warm_up_steps=6, accumulate_steps=2),
        "fp16",
    ),
}  # fmt: skip
"""Networks, options and precisions of trainings that are stopped."""


@pytest.mark.parametrize("name", list(RESUMED))
def test_a_training_that_is_stopped_and_resumed_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    model, extensions, precision = RESUMED[name]
    given = replace(config(image_folder(photos())), n_epochs=2, lr_config=LrConfig(cosine=CosineLr(learning_rate=1e-3)))
    asked = Experiment(model_config=model, train_config=given, extensions=extensions)
    common: dict[str, Any] = {"device": "cuda", "precision": precision}
    whole = train(asked, tmp_path / "whole", reporter=Quiet(), **common)
    stop = Quiet(1, 2, partial(signal.raise_signal, signal.SIGINT))
    with pytest.raises(Interrupted):
        train(asked, tmp_path / "parts", reporter=stop, **common)
    resumed = train(asked, tmp_path / "parts", reporter=Quiet(), resume=True, **common)
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert (tmp_path / "parts" / "training.csv").read_bytes() == (tmp_path / "whole" / "training.csv").read_bytes()
