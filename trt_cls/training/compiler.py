"""torch.compile for the network that learns, and its failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trt_cls.errors import TrtClsError


def compiled(network: nn.Module) -> Any:
    """`network`, compiled anew for each batch size: kernels for any size round otherwise than those for one.

    So a training that is resumed computes with the kernels it began with.
    """
    return torch.compile(network, dynamic=False)


@contextmanager
def compiler_failures_told() -> Iterator[None]:
    """Runs what calls a compiled network.

    Raises:
        TrtClsError: it can't be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TrtClsError(
            f"--compile: torch can't compile the network here ({reason.strip()}); expected a C++ compiler on a CPU, "
            "triton and a C compiler for a GPU; install them, or train without --compile in another folder"
        ) from error
