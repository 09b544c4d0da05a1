"""Forward and backward pass of a network as CUDA graphs, recorded once: a step then launches two graphs.

The kernels are those of a training without, and so are its numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError, TrtClsError
from trt_cls.spec.experiment import Extensions
from trt_cls.training.compute import Compute


class Graphed:
    """`network`, whose passes for batches of `batch_size` images are recorded at the first one and replayed.

    They are recorded again where images come in another size. Batches of fewer images run as they would without.
    Gradients lie in the graphs' memory until the next batch, so that each batch needs its own step of the optimizer.
    """

    def __init__(self, network: nn.Module, compute: Compute, batch_size: int) -> None:
        self._network, self._compute, self._batch_size = network, compute, batch_size
        self._replayed: Callable[[Tensor], Tensor] | None = None
        self._recorded_for = torch.Size()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images [n,C,H,W].

        Raises:
            TrtClsError: the network can't be recorded.
        """
        if len(images) != self._batch_size:
            logits: Tensor = self._network(images)
            return logits
        if self._replayed is None or images.shape != self._recorded_for:
            self._replayed = None  # frees the memory of the graphs for another size
            self._replayed, self._recorded_for = self._recorded(images), images.shape
        return self._replayed(images)

    def _recorded(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        with _unchanged(self._network, self._compute), _beside_other_threads(), warnings.catch_warnings():
            # torch 2.11 warms up on one stream and records on another
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            try:
                recorded: Any = torch.cuda.make_graphed_callables(
                    _Module(self._network), (images.clone(),), allow_unused_input=True
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise TrtClsError(
                    f"--cuda-graphs: the network can't be recorded ({reason}); expected one whose passes read nothing "
                    "back from the GPU; leave --cuda-graphs out, and go on with --resume if this is a training"
                ) from error
        return recorded  # type: ignore[no-any-return]


class _Module(nn.Module):
    """Around the network, which recording would change."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


@contextmanager
def _unchanged(network: nn.Module, compute: Compute) -> Iterator[None]:
    """Sets statistics and random numbers back to what they were: recording begins with several passes.

    Autocast must keep no copies of the weights from one pass to another.
    """
    kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    devices = [] if compute.device.index is None else [compute.device.index]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def _beside_other_threads() -> Iterator[None]:
    """Lets the loader's threads page-lock memory meanwhile, with which torch's default mode ends a recording.

    Not the argument of make_graphed_callables: torch 2.9 has none.
    """
    cuda: Any = torch.cuda
    graph = cuda.graph
    cuda.graph = lambda *given, **options: graph(*given, **options | {"capture_error_mode": "thread_local"})
    try:
        yield
    finally:
        cuda.graph = graph


def require_recordable(compute: Compute, extensions: Extensions, processes: Processes, *, compiled: bool) -> None:
    """Refuses --cuda-graphs where a step is more than two passes on one GPU.

    Raises:
        RequestError: it is.
    """
    hindrances = {
        "on a CPU": compute.device.type != "cuda",
        "with several processes": processes.size > 1,
        "with train_config.model_parallelism": len(compute.devices) > 1,
        "with extensions.microbatches": extensions.microbatches > 1,
        "with extensions.accumulate_steps": extensions.accumulate_steps > 1,
        "with extensions.gradient_checkpointing": extensions.gradient_checkpointing,
        "with --compile": compiled,
    }
    found = [name for name, holds in hindrances.items() if holds]
    if found:
        raise RequestError(
            f"--cuda-graphs {', '.join(found)}; expected one GPU, and one forward and one backward pass a step; "
            "train without --cuda-graphs, or without the rest"
        )
