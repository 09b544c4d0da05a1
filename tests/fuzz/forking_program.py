"""Runs `trt-cls` in forked processes, so that many can be killed without importing torch for each.

A line of JSON in, {"arguments", "output"}; the process's number out, then its exit status when it has ended.
"""

from __future__ import annotations

import json
import os
import sys

import trt_cls.training.run  # noqa: F401  all that is slow to import
from trt_cls.cli import main

for line in sys.stdin:
    request = json.loads(line)
    process = os.fork()
    if process == 0:
        os.setsid()
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(main(request["arguments"]))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
