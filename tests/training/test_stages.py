"""A network in stages learns as it does whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trt_cls.models import build
from trt_cls.spec.experiment import Experiment, Extensions, ModelConfig
from trt_cls.training.parallel import Pipelined, split, spread
from trt_cls.training.run import train


@pytest.mark.parametrize(
    ("costs", "shares", "stages"),
    [
        ([1, 1, 1, 1], (0.5, 0.5), [0, 0, 1, 1]),
        ([1, 1, 1, 1], (3, 1), [0, 0, 0, 1]),
        ([1, 1, 1, 9], (0.25, 0.75), [0, 0, 0, 1]),
        ([1, 1, 1, 1, 1, 1], (1, 1, 1), [0, 0, 1, 1, 2, 2]),
    ],
)
def test_each_stage_gets_its_share_of_the_cost(
    costs: list[float], shares: tuple[float, ...], stages: list[int]
) -> None:
    assert split(costs, shares) == stages


def test_values_are_moved_where_a_stage_begins(experiment: Callable[..., Experiment]) -> None:
    # "meta" stands for a second device: its tensors refuse to meet those of the CPU
    network = build(experiment().model_config, 3)
    spread(network, (0.5, 0.5), (torch.device("cpu"), torch.device("meta")), batch_size=8)  # type: ignore[arg-type]
    devices = [parameter.device.type for parameter in network.parameters()]
    assert devices == sorted(devices)
    assert set(devices) == {"cpu", "meta"}
    assert network(torch.zeros(2, 3, 16, 16)).device.type == "meta"


def test_two_stages_give_the_numbers_of_one_device(
    experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    reporter = quiet()
    train(experiment(model_parallelism=(0.5, 0.5)), tmp_path / "two", device="cpu", reporter=reporter)
    train(experiment(), tmp_path / "one", device="cpu", reporter=quiet())
    assert reporter.lines[0].startswith("2 stages on cpu")
    for name in ("training.csv", "weights/resnet_002.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize(
    ("images", "sizes"), [(8, [3, 3, 2]), (7, [3, 2, 2]), (5, [3, 2]), (3, [3]), (2, [2]), (1, [1]), (0, [0])]
)
def test_a_batch_goes_through_in_parts_of_two_images_at_least(images: int, sizes: list[int]) -> None:
    seen: list[int] = []

    class Doubled(nn.Module):
        def forward(self, part: Tensor) -> Tensor:
            seen.append(len(part))
            return part * 2

    batch = torch.arange(images * 4.0).reshape(images, 4)
    assert torch.equal(Pipelined(Doubled(), 3)(batch), batch * 2)
    assert seen == sizes


def test_microbatches_give_the_numbers_of_whole_batches(
    experiment: Callable[..., Experiment], quiet: Any, tmp_path: Path
) -> None:
    # without batch normalization, which sees each part alone
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,16,16", use_batch_norm=False, use_bias=True)
    parts = Extensions(microbatches=3)
    asked = experiment(model=model, model_parallelism=(0.5, 0.5), extensions=parts)
    train(asked, tmp_path / "parts", device="cpu", reporter=quiet())
    train(experiment(model=model), tmp_path / "whole", device="cpu", reporter=quiet())
    found, expected = (np.genfromtxt(tmp_path / name / "training.csv", delimiter=",") for name in ("parts", "whole"))
    assert found.shape == (3, 10)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
