"""`torchrun ARGUMENTS`, whose processes are forked from this one, so that none has to import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from torch.distributed import run
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trt_cls.cli import main


def work(*given: str) -> None:
    """What `python -m trt_cls` does."""
    if status := main([*given[given.index("trt_cls") + 1 :]]):
        sys.exit(status)


def forking(config: LaunchConfig, entrypoint: str) -> Callable[..., object]:
    return elastic_launch(replace(config, start_method="fork"), work)


run.elastic_launch = forking
run.main(sys.argv[1:])
