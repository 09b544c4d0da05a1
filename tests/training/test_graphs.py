"""What --cuda-graphs records leaves no trace in the training; tests/gpu has what is replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trt_cls.distributed.processes import ALONE
from trt_cls.errors import RequestError, TrtClsError
from trt_cls.spec.extensions import NO_EXTENSIONS, Extensions
from trt_cls.training.compute import choose_compute
from trt_cls.training.graphs import Graphed, require_recordable

CPU = choose_compute("cpu", "fp32")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The samples that were recorded: here torch runs the network, as it does before it records, and replays zeros."""
    samples: list[Tensor] = []

    def record(module: nn.Module, sample: tuple[Tensor], **_: Any) -> Callable[[Tensor], Tensor]:
        assert not torch.is_autocast_cache_enabled()
        samples.append(sample[0])
        module(*sample)
        module.forward = lambda images: torch.zeros(len(images), 2)  # as torch does
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return samples


def test_recording_changes_neither_statistics_nor_random_numbers(recorded: list[Tensor]) -> None:
    plain, images = network(), torch.rand(4, 3, 8, 8)
    plain(images)  # makes its last layer
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    graphed = Graphed(plain, CPU, batch_size=4)
    assert not graphed(images).any()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert torch.is_autocast_cache_enabled()
    graphed(images)
    assert len(recorded) == 1
    assert plain(images).any()  # the network itself is as it was


def test_images_of_another_size_are_recorded_anew(recorded: list[Tensor]) -> None:
    graphed = Graphed(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), CPU, batch_size=4)
    for side in (8, 8, 12, 12):
        graphed(torch.rand(4, 3, side, side))
        graphed(torch.rand(3, 3, side, side))  # runs as it is
    assert [images.shape[2] for images in recorded] == [8, 12]


@pytest.mark.parametrize("images", [3, 5], ids=["the last", "with an image that waited"])
def test_batches_of_another_size_are_not_recorded(images: int, recorded: list[Tensor]) -> None:
    graphed = Graphed(network(), CPU, batch_size=4)
    assert graphed(torch.rand(images, 3, 8, 8)).any()
    assert not recorded


def test_loaders_may_page_lock_memory_during_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def graph(*_: Any, capture_error_mode: str = "global", **__: Any) -> None:
        modes.append(capture_error_mode)

    def record(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
        torch.cuda.graph(None)  # as torch 2.9 calls it
        torch.cuda.graph(None, capture_error_mode="global")  # and torch 2.14
        return module

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    Graphed(network(), CPU, batch_size=4)(torch.rand(4, 3, 8, 8))
    assert modes == ["thread_local", "thread_local"]
    assert torch.cuda.graph is graph


def test_a_network_that_cannot_be_recorded_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(TrtClsError, match=r"can't be recorded \(operation not permitted when stream is capturing\)"):
        Graphed(network(), CPU, batch_size=4)(torch.rand(4, 3, 8, 8))


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^--cuda-graphs on a CPU; expected one GPU"):
        require_recordable(CPU, NO_EXTENSIONS, ALONE, compiled=False)
    with pytest.raises(RequestError, match=r"with extensions.accumulate_steps, with --compile"):
        require_recordable(CPU, Extensions(accumulate_steps=2), ALONE, compiled=True)
