"""Starts a Python program once for each GPU of this machine, as torchrun does, and ends all of them when one fails."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any


def run_in_processes(count: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` in `count` processes that find each other, and returns their exit status.

    They have this process's input and output, and say themselves why they fail.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    given: dict[str, Any] = {}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and hasattr(LaunchConfig, "signals_to_handle"):
        given["signals_to_handle"] = "SIGTERM,SIGINT,SIGQUIT"  # under nohup; torch would end all at a SIGHUP
    logging.disable(logging.ERROR)  # torch's launcher repeats the end of each process; its loggers have own levels
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        logs_specs=DefaultLogsSpecs(),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **given,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return 130
    return 0
