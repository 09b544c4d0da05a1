"""Runs trainings in forked processes, so that a test can kill many of them without importing torch for each.

A line of JSON in, {"spec", "results", "resume"}; the process's number out, then its exit status when it has ended. With
"order", "cache" and "memory", too, the files of that folder are in memory://set.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import torch._dynamo  # the first step of an optimizer imports it: two seconds
import torch.utils.tensorboard  # noqa: F401

from trt_cls.spec import loads
from trt_cls.training.logs.console import Reporter
from trt_cls.training.run import train

for line in sys.stdin:
    request = json.loads(line)
    process = os.fork()
    if process == 0:
        try:
            if "memory" in request:
                from fsspec import filesystem

                os.environ["TRT_CLS_CACHE"] = request["cache"]
                for path in Path(request["memory"]).iterdir():
                    filesystem("memory").pipe_file(f"/set/{path.name}", path.read_bytes())
            train(
                loads(request["spec"]),
                Path(request["results"]),
                resume=request["resume"],
                device="cpu",
                save_every=1,
                order=None if request["resume"] else request.get("order"),
                reporter=Reporter(io.StringIO()),
            )
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
