"""Runs Python programs in forked processes that need not import torch each: the launcher of `forked.py`.

A line of JSON in: {"program", "arguments", "environment", "folder", "input", "output", "errors"} begins one and gives
its process number, {"wait": number} gives its exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import torch._dynamo  # the first step of an optimizer imports it: two seconds
import torch.utils.tensorboard  # noqa: F401
from narrowing import narrowed

import trt_cls.training.run  # noqa: F401
from trt_cls.engines import onnxruntime  # noqa: F401
from trt_cls.models.builder import Builder


def run(request: dict[str, object]) -> None:
    os.setsid()
    for number, name in enumerate(("input", "output", "errors")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(str(request[name]), flags), number)
    sys.stdin = os.fdopen(0)
    os.chdir(str(request["folder"]))
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    if "NARROW" in os.environ:
        Builder.conv = narrowed(Builder.conv)  # type: ignore[method-assign]
    sys.argv = [str(request["program"]), *request["arguments"]]  # type: ignore[misc]
    if request["program"] == "trt_cls":
        runpy.run_module("trt_cls", run_name="__main__", alter_sys=True)
    runpy.run_path(str(request["program"]), run_name="__main__")


for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
    elif process := os.fork():
        print(process, flush=True)
    else:
        run(request)
        sys.exit(0)
