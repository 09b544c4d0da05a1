"""The same request gives the same numbers: run twice, with other workers, interrupted and resumed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trt_cls.errors import RequestError
from trt_cls.spec.experiment import Adam, Experiment, ModelConfig, Optimizer, RegConfig, Rmsprop, Visualizer
from trt_cls.training import loop
from trt_cls.training.compute import Compute, choose_compute, repeatable
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]
DROPOUT = ModelConfig(arch="squeezenet", input_image_size="3,32,32", retain_head=True, dropout=0.5)


def numbers(folder: Path) -> dict[str, Any]:
    """The curve as it is written, and each weight of each checkpoint to the bit."""
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((folder / "weights").iterdir())
        for name, tensor in load_file(path).items()
    }
    return {"curve": (folder / "training.csv").read_text(), **weights}


def interrupted_and_resumed(experiment: Experiment, folder: Path, quiet: Any, epoch: int, step: int) -> None:
    stop = partial(signal.raise_signal, signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"epoch {epoch}, step {step} of 3 is saved"):
        train(experiment, folder, device="cpu", reporter=quiet(epoch, step, stop))
    torch.manual_seed(12345)  # what else draws in between must not matter
    train(experiment, folder, device="cpu", reporter=quiet(), resume=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reference")
    train(experiment(), folder, device="cpu", reporter=quiet())
    return numbers(folder)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_second_run_with_any_number_of_workers_gives_the_same_numbers(
    workers: int, reference: dict[str, Any], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    train(experiment(n_workers=workers), tmp_path, device="cpu", reporter=quiet())
    assert numbers(tmp_path) == reference


def test_another_seed_gives_other_numbers(
    reference: dict[str, Any], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    train(experiment(random_seed=8), tmp_path, device="cpu", reporter=quiet())
    assert numbers(tmp_path)["curve"] != reference["curve"]


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 3), (2, 2)])
def test_a_training_resumed_in_the_middle_of_an_epoch_gives_the_same_numbers(
    epoch: int, step: int, reference: dict[str, Any], experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    interrupted_and_resumed(experiment(), tmp_path, quiet, epoch, step)
    assert numbers(tmp_path) == reference


@pytest.mark.parametrize(
    ("optimizer", "penalty"),
    [
        (Optimizer(adam=Adam()), RegConfig(type="L1", weight_decay=1e-5)),
        (Optimizer(rmsprop=Rmsprop()), RegConfig(type="None")),
    ],
    ids=["adam, L1", "rmsprop"],
)
def test_resuming_keeps_the_optimizer_and_dropout(
    optimizer: Optimizer, penalty: RegConfig, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    request = experiment(model=DROPOUT, optimizer=optimizer, reg_config=penalty)
    train(request, tmp_path / "whole", device="cpu", reporter=quiet())
    interrupted_and_resumed(request, tmp_path / "parts", quiet, 1, 2)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_training_interrupted_while_it_validates_gives_the_same_numbers(
    reference: dict[str, Any], experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.stream

    def stop_then_stream(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "stream", stop_then_stream)
    with pytest.raises(Interrupted, match="epoch 1, step 3 of 3"):
        train(experiment(), tmp_path, device="cpu", reporter=quiet())
    monkeypatch.undo()
    train(experiment(), tmp_path, device="cpu", reporter=quiet(), resume=True)
    assert numbers(tmp_path) == reference


def test_handlers_of_signals_are_put_back(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in signals]
    train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=quiet())
    assert [signal.getsignal(number) for number in signals] == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    """The folder of a training that was stopped in its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(experiment(), folder, device="cpu", reporter=quiet(1, 1, partial(signal.raise_signal, signal.SIGINT)))
    return folder


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"n_epochs": 3}, "train_config.n_epochs: 2 ≠ 3"),
        ({"mixup_alpha": 0.5}, "train_config.mixup_alpha: 0.2 ≠ 0.5"),
        ({"optimizer": Optimizer(adam=Adam())}, "train_config.optimizer.sgd.momentum: 0.9 ≠ nothing"),
        ({"model": ModelConfig(n_layers=18, input_image_size="3,16,16")}, "model_config.n_layers: 10 ≠ 18"),
    ],
)
def test_resuming_another_request_is_refused_by_name(
    given: dict[str, Any], named: str, stopped: Path, experiment: Make, quiet: Any
) -> None:
    with pytest.raises(RequestError) as refusal:
        train(experiment(**given), stopped, device="cpu", reporter=quiet(), resume=True)
    assert named in str(refusal.value)


def test_resuming_with_another_precision_is_refused(stopped: Path, experiment: Make, quiet: Any) -> None:
    with pytest.raises(RequestError, match="--precision: fp32 ≠ bf16"):
        train(experiment(), stopped, device="cpu", precision="bf16", reporter=quiet(), resume=True)


def test_resuming_keeps_the_precision(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    stop = quiet(1, 1, partial(signal.raise_signal, signal.SIGINT))
    with pytest.raises(Interrupted):
        train(experiment(n_epochs=1), tmp_path, device="cpu", precision="bf16", reporter=stop)
    reporter = quiet()
    train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=reporter, resume=True)
    assert "bf16" in reporter.lines[0]


def test_resuming_on_other_images_is_refused(
    stopped: Path, experiment: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/train/red/00.png").unlink()
    with pytest.raises(RequestError, match=r"training images: 21 .* ≠ 20 "):
        train(experiment(root=tmp_path / "images"), stopped, device="cpu", reporter=quiet(), resume=True)


def test_workers_folders_and_visualizer_may_change_between(
    reference: dict[str, Any], stopped: Path, experiment: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    moved, results = tmp_path / "images", tmp_path / "results"
    shutil.copytree(images, moved)
    shutil.copytree(stopped, results)
    request = experiment(root=moved, n_workers=1, visualizer=Visualizer(enabled=True, weight_histograms=True))
    train(request, results, device="cpu", reporter=quiet(), resume=True)
    assert numbers(results) == reference


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal lost", "under nohup"])
def test_a_hangup_saves_but_not_where_it_is_ignored(
    ignored: bool, experiment: Make, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    hang_up = quiet(1, 1, partial(signal.raise_signal, signal.SIGHUP))
    try:
        if ignored:
            train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=hang_up)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            return
        with pytest.raises(Interrupted, match="epoch 1, step 1 of 3 is saved"):
            train(experiment(n_epochs=1), tmp_path, device="cpu", reporter=hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("bf16", True)])
def test_what_rounds_products_is_read_by_both_of_torch_s_names_and_put_back(precision: str, rounded: bool) -> None:
    def read() -> list[object]:
        """torch raises where its two sets of names are mixed."""
        backends = torch.backends
        newer = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.fp32_precision
        return [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), newer]

    with repeatable(choose_compute("cpu", "fp32")):
        pass
    before = read()
    with repeatable(choose_compute("cpu", precision)):
        assert read()[:2] == [rounded, rounded]
    assert read() == before


def test_attention_on_a_gpu_takes_no_kernel_whose_gradient_does_not_repeat() -> None:
    cuda = torch.backends.cuda

    def allowed() -> list[bool]:
        return [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()]

    before = allowed()
    with repeatable(choose_compute("cpu", "fp32")):
        assert allowed() == before
    with repeatable(Compute((torch.device("cuda", 0),), "bf16", "")):
        assert not any(allowed())
        assert cuda.math_sdp_enabled()
    assert allowed() == before
