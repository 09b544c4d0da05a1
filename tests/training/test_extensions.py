"""Training beyond TAO: each extension against the same steps written out, and resumed to the bit."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from support.rounding import assert_rounds_like
from support.spec_texts import each_of
from trt_cls.data.loader import TrainingBatch
from trt_cls.distributed.processes import ALONE
from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import (
    Distillation,
    Experiment,
    Extensions,
    LrConfig,
    ModelConfig,
    RandAugment,
    RegConfig,
    StepLr,
)
from trt_cls.spec.extensions import ClassWeights, ModernOptimizer, Muon, RandomResizedCrop
from trt_cls.training.averaging import mean_of, renew_statistics
from trt_cls.training.compute import choose_compute
from trt_cls.training.learner import Learner
from trt_cls.training.logs import EpochRow, epochs_without_gain
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]
NO_NORM = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_bias=True)
NORM = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=True)
CPU = choose_compute("cpu", "fp32")


def batches(*sizes: int) -> list[TrainingBatch]:
    torch.manual_seed(1)
    return [TrainingBatch(torch.randn(n, 3, 16, 16), torch.rand(n, 3).softmax(dim=1), ()) for n in sizes]


def learner(
    experiment: Make, extensions: Extensions, model: ModelConfig = NO_NORM, weights: Tensor | None = None, **given: Any
) -> Learner:
    asked = experiment(model=model, batch_size_per_gpu=4, **given).train_config
    assert asked is not None
    torch.manual_seed(0)
    return Learner(build(model, 3), asked, CPU, extensions=extensions, weights=weights)


def plain_loop(network: nn.Module, rate: float, groups: list[list[TrainingBatch]], longest: float = 0.0) -> None:
    """SGD with momentum 0.9 and L2, a step for each group."""
    kernels = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in network.parameters() if parameter.dim() == 1]
    sgd = torch.optim.SGD([{"params": kernels, "weight_decay": 2e-4}, {"params": rest}], lr=rate, momentum=0.9)
    for group in groups:
        sgd.zero_grad()
        images, targets = (torch.cat(column) for column in zip(*((b.images, b.targets) for b in group), strict=True))
        functional.cross_entropy(network(images), targets).backward()
        if longest:
            nn.utils.clip_grad_norm_(network.parameters(), longest)
        sgd.step()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        # sums in other orders and memory layouts: 1e-4 of gradients, as for a single step, here after up to three
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_accumulated_batches_make_the_step_of_one_batch_with_all_their_images(experiment: Make) -> None:
    one, two, three, four, last = given = batches(4, 4, 4, 4, 3)
    taught = learner(experiment, Extensions(accumulate_steps=2))
    expected = deepcopy(taught.model)
    for number, batch in enumerate(given):
        taught.step(batch, number, rate=0.01, ends_group=number in (1, 3, 4))
    plain_loop(expected, 0.01, [[one, two], [three, four], [last]])
    assert_same(taught.model, expected)


def test_a_group_that_an_empty_batch_cuts_short_is_weighted_by_its_images(experiment: Make) -> None:
    whole, empty = batches(4, 0)
    taught = learner(experiment, Extensions(accumulate_steps=2))
    expected = deepcopy(taught.model)
    taught.step(whole, 0, rate=0.01, ends_group=False)
    taught.step(empty, 1, rate=0.01)
    plain_loop(expected, 0.01, [[whole]])
    assert_same(taught.model, expected)


def test_a_gradient_is_clipped_before_the_penalty(experiment: Make) -> None:
    given = batches(4, 4)
    taught = learner(experiment, Extensions(clip_grad_norm=0.05))
    expected, free = deepcopy(taught.model), deepcopy(taught.model)
    for number, batch in enumerate(given):
        taught.step(batch, number, rate=0.1)
    plain_loop(expected, 0.1, [[batch] for batch in given], longest=0.05)
    plain_loop(free, 0.1, [[batch] for batch in given])
    assert_same(taught.model, expected)
    with pytest.raises(AssertionError):
        assert_same(taught.model, free)


def test_a_step_weights_the_classes_and_the_sure_answers(experiment: Make) -> None:
    (batch,) = batches(4)
    weights = torch.tensor([0.5, 1.0, 4.0])
    taught = learner(experiment, Extensions(focal_gamma=2.0), weights=weights)
    expected = deepcopy(taught.model)
    taught.step(batch, 0, rate=0.01)
    logs = expected(batch.images).log_softmax(dim=1)
    (batch.targets * weights * (1 - logs.exp()) ** 2 * -logs).sum(dim=1).mean().backward()
    penalty = {name: 2e-4 * p.detach() if p.dim() > 1 else 0 for name, p in expected.named_parameters()}
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * (parameter.grad + penalty[name])
    assert_same(taught.model, expected)


def test_the_running_mean_is_the_documented_one_of_weights_and_statistics(experiment: Make) -> None:
    taught = learner(experiment, Extensions(ema_decay=0.15), NORM)
    mean = {name: tensor.clone() for name, tensor in taught.result.state_dict().items()}
    for number, (batch, kept) in enumerate(zip(batches(4, 4, 4), (1 / 10, 0.15, 0.15), strict=True)):
        taught.step(batch, number, rate=0.01)
        for name, live in taught.model.state_dict().items():
            mean[name] = kept * mean[name] + (1 - kept) * live if live.is_floating_point() else live.clone()
    for name, tensor in taught.result.state_dict().items():
        torch.testing.assert_close(tensor, mean[name], rtol=1e-5, atol=1e-6, msg=name)
    assert any("running_mean" in name for name in mean)


def test_checkpoints_and_validation_are_those_of_the_mean(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    live = train(experiment(), tmp_path / "live", device="cpu", reporter=quiet())
    asked = experiment(extensions=Extensions(ema_decay=0.99))
    mean = train(asked, tmp_path / "mean", device="cpu", reporter=quiet())
    assert [row.loss for row in mean.rows] == [row.loss for row in live.rows], "training itself is the same"
    assert mean.rows[-1].val_loss != live.rows[-1].val_loss
    state = torch.load(mean.results.state, weights_only=True)["learner"]
    saved = load_file(mean.last)
    assert all(torch.equal(saved[name], tensor) for name, tensor in state["mean"]["model"].items())
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in load_file(live.last).items())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return train(experiment(n_epochs=1), folder, device="cpu", reporter=quiet()).last


RESUMED = {
    "accumulate": Extensions(accumulate_steps=2, clip_grad_norm=0.5),
    "mean": Extensions(ema_decay=0.9, best_metric="macro_f1"),
    "transforms": Extensions(rand_augment=RandAugment(), random_erasing=0.5, cutmix_alpha=1.0),
    "average": Extensions(average_checkpoints=2),
    "sampling": Extensions(balanced_sampling=True, focal_gamma=2.0),
    "weights": Extensions(class_weights=ClassWeights(power=0.5), cutmix_alpha=1.0),
    "augmentation": Extensions(
        random_resized_crop=RandomResizedCrop(min_scale=0.5), trivial_augment=True, repeated_augment=2, bce_loss=True
    ),
    "muon": Extensions(optimizer=ModernOptimizer(muon=Muon()), layer_decay=0.8, warm_up_steps=5),
}
NO_PENALTY = RegConfig(type="None")


def numbers(folder: Path) -> dict[str, Any]:
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((folder / "weights").iterdir())
        for name, tensor in load_file(path).items()
    }
    page = (folder / "training.html").read_text()
    curves = page[page.index("<h2>Curves") :].split("</section>")[:2]  # and the classes over time
    return {"curve": (folder / "training.csv").read_text(), "curves": curves, **weights}


@pytest.mark.parametrize("name", [*RESUMED, "distillation"])
def test_resumed_trainings_end_with_the_same_numbers(
    name: str, teacher: Path, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    extensions = RESUMED.get(name, Extensions(distillation=Distillation(teacher=str(teacher))))
    given: dict[str, Any] = {"reg_config": NO_PENALTY} if extensions.optimizer else {}
    if extensions.random_resized_crop:
        given["enable_random_crop"] = False
    asked = experiment(extensions=extensions, **given)
    whole = train(asked, tmp_path / "whole", device="cpu", reporter=quiet())
    assert (whole.averaged is not None) == (name == "average")
    stop = quiet(2, 1, partial(signal.raise_signal, signal.SIGTERM))
    with pytest.raises(Interrupted, match="epoch 2, step 1 of 3"):
        train(asked, tmp_path / "parts", device="cpu", reporter=stop)
    torch.manual_seed(5)
    train(asked, tmp_path / "parts", device="cpu", reporter=quiet(), resume=True)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("chosen", each_of(ModernOptimizer).values(), ids=each_of(ModernOptimizer))
def test_a_saved_optimizer_goes_on_to_the_bit(chosen: ModernOptimizer, experiment: Make) -> None:
    asked = Extensions(optimizer=chosen, layer_decay=0.5)
    whole, parts = (learner(experiment, asked, NORM, reg_config=NO_PENALTY) for _ in range(2))
    given = batches(4, 4, 4, 4)
    for number, batch in enumerate(given):
        whole.step(batch, number, rate=0.01)
    for number, batch in enumerate(given[:2]):
        parts.step(batch, number, rate=0.01)
    file = io.BytesIO()
    torch.save(parts.state(), file)
    file.seek(0)
    resumed = learner(experiment, asked, NORM, reg_config=NO_PENALTY)
    resumed.restore(torch.load(file, weights_only=True))
    for number, batch in enumerate(given[2:], 2):
        resumed.step(batch, number, rate=0.01)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_bce_loss_is_timm_s_on_mixed_targets(experiment: Make) -> None:
    timm_loss = pytest.importorskip("timm.loss")
    [batch] = batches(4)
    taught = learner(experiment, Extensions(bce_loss=True), reg_config=NO_PENALTY)
    expected = deepcopy(taught.model)
    taught.step(batch, 0, rate=0.01)
    loss = timm_loss.BinaryCrossEntropy()(expected(batch.images), batch.targets)
    loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.01).step()
    assert taught.metrics().loss == pytest.approx(loss.item(), rel=1e-6)
    assert_same(taught.model, expected)


def test_warm_up_counts_steps_of_the_optimizer(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    still = LrConfig(step=StepLr(learning_rate=1e-8, step_size=99.0, gamma=0.5))
    asked = experiment(extensions=Extensions(accumulate_steps=2, warm_up_steps=3), lr_config=still)
    rows = train(asked, tmp_path, device="cpu", reporter=quiet()).rows  # two steps in each of two epochs
    assert [row.lr for row in rows] == pytest.approx([2 / 3 * 1e-8, 1e-8])


def test_the_schedule_counts_steps_of_the_optimizer(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    halves = LrConfig(step=StepLr(learning_rate=1e-8, step_size=25.0, gamma=0.5))
    asked = experiment(extensions=Extensions(accumulate_steps=2), lr_config=halves)
    # two epochs of three batches are of two steps each: the rates are 1, 1/2, 1/4, 1/8 of the first
    rows = train(asked, tmp_path, device="cpu", reporter=quiet()).rows
    assert [row.lr for row in rows] == [0.5e-8, 0.125e-8]


def row(epoch: int, val_acc: float) -> EpochRow:
    return EpochRow(epoch, 0.0, 0.0, 0.0, val_acc, -float(epoch), val_macro_f1=-val_acc)


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.2], 1), ([0.3, 0.1, 0.2], 2), ([0.1, 0.3, 0.3, 0.4], 0)],
)
def test_only_a_higher_accuracy_is_a_gain(accuracies: list[float], epochs: int) -> None:
    rows = [row(number + 1, value) for number, value in enumerate(accuracies)]
    assert epochs_without_gain(rows, "top_1") == epochs


@pytest.mark.parametrize(("metric", "best", "waited"), [("top_1", 2, 1), ("loss", 3, 0), ("macro_f1", 1, 2)])
def test_best_metric_chooses_the_best_epoch_and_the_patience(metric: str, best: int, waited: int) -> None:
    rows = [row(1, 0.1), row(2, 0.4), row(3, 0.3)]
    assert max(rows, key=lambda row: row.rank(metric)).epoch == best
    assert epochs_without_gain(rows, metric) == waited


def test_training_stops_early_and_says_so(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    still = LrConfig(step=StepLr(learning_rate=1e-30, step_size=50.0, gamma=0.5))
    asked = experiment(
        model=NO_NORM, n_epochs=9, lr_config=still, extensions=Extensions(early_stopping_patience=2)
    )  # fmt: skip
    reporter = quiet()
    result = train(asked, tmp_path, device="cpu", reporter=reporter)
    assert result.stopped_early
    assert [row.epoch for row in result.rows] == [1, 2, 3]
    assert result.last.name == "resnet_003.safetensors"
    said = "stopped early, after epoch 3 of 9, 2 without a better val_acc"
    assert said in reporter.lines[-1]
    end = json.loads((tmp_path / "status.json").read_text().splitlines()[-1])
    assert end["status"] == "SUCCESS"
    assert said in end["message"]
    with pytest.raises(RequestError, match="stopped early, after epoch 3, nothing to resume"):
        train(asked, tmp_path, device="cpu", reporter=quiet(), resume=True)


def test_the_average_is_the_mean_of_the_last_checkpoints_with_renewed_statistics(
    experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    asked = experiment(n_epochs=3, extensions=Extensions(average_checkpoints=2))
    result = train(asked, tmp_path, device="cpu", reporter=quiet())
    assert result.averaged is not None
    averaged, last = load_file(result.averaged.path), load_file(result.last)
    earlier = load_file(result.results.checkpoint("resnet", 2))
    statistics = 0
    for name, tensor in averaged.items():
        if "running" in name:
            statistics += not torch.equal(tensor, last[name])
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, (last[name] + earlier[name]) / 2, rtol=1e-6, atol=1e-7)
    assert statistics > 0
    assert (result.averaged.first_epoch, result.averaged.row.epoch) == (2, 3)
    assert load_checkpoint(result.averaged.path).contract.classes == ("blue", "green", "red")
    assert "mean of epochs 2 to 3" in (tmp_path / "status.json").read_text()


def test_an_average_that_is_interrupted_is_made_again(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    asked = experiment(extensions=Extensions(average_checkpoints=2))
    train(asked, tmp_path / "whole", device="cpu", reporter=quiet())

    class Stopping(quiet):  # type: ignore[misc, valid-type]
        def epoch_done(self, rows: Sequence[EpochRow], *_: Any, **__: Any) -> None:
            if rows[-1].epoch == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="epoch 2, step 3 of 3"):
        train(asked, tmp_path / "parts", device="cpu", reporter=Stopping())
    assert not (tmp_path / "parts/weights/averaged.safetensors").exists()
    result = train(asked, tmp_path / "parts", device="cpu", reporter=quiet(), resume=True)
    assert [row.epoch for row in result.rows] == [1, 2]
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_renewed_statistics_are_torchs() -> None:
    torch.manual_seed(0)
    own = build(NORM, 3).train()
    images = [torch.randn(n, 3, 16, 16) for n in (4, 4, 3)]
    own(images[0])
    expected, exact = deepcopy(own), deepcopy(own).double()
    renew_statistics(own, images, CPU, ALONE)
    update_bn(images, expected)
    update_bn([batch.double() for batch in images], exact)
    for name, tensor in expected.state_dict().items():
        assert_rounds_like(own.state_dict()[name], tensor, exact.state_dict()[name], name)
    momenta = {module.momentum for module in own.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {module.momentum for module in expected.modules() if isinstance(module, nn.BatchNorm2d)}


def test_frozen_statistics_are_not_renewed() -> None:
    own = build(ModelConfig(**{**vars(NORM), "freeze_bn": True}), 3).train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    renew_statistics(own, [torch.randn(4, 3, 16, 16)], CPU, ALONE)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


def test_a_mean_keeps_counts() -> None:
    states: list[dict[str, Tensor]] = [
        {"weight": torch.tensor([1.0, 4.0]), "count": torch.tensor(3)},
        {"weight": torch.tensor([2.0, 2.0]), "count": torch.tensor(7)},
    ]
    mean = mean_of(states)
    assert mean["weight"].tolist() == [1.5, 3.0]
    assert mean["count"].item() == 7
