"""Plants faults in what uses a GPU, in a copy of the last commit, and names what fails over the stand-in driver.

    python tests/driver/faults.py [MODULE …]

As many at once as there are processors; of each the tests that concern it, up to the first that fails. Exits with 1
where a fault goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import build
import run


class Fault(NamedTuple):
    """What it is, what is written where in a file instead of what is right, and the tests that are to notice.

    `more`: what else is written so, as module, right and wrong.
    """

    kind: str
    module: str
    right: str
    wrong: str
    tests: tuple[str, ...]
    more: tuple[tuple[str, str, str], ...] = ()


PIPELINE = "trt_cls/engines/tensorrt/pipeline.py"
CUDA, PREFETCH = "trt_cls/preprocessing/cuda.py", "trt_cls/training/prefetch.py"
GPU, ENGINE = "trt_cls/gpu.py", "trt_cls/engines/tensorrt/engine.py"
LIMIT = 600
"""Seconds of one run, some twenty times what it takes: a fault may also make a test hang."""
ENGINES, EXECUTORS, TRAINING = ("test_engine.py", "test_pipeline.py"), ("test_executor.py",), ("test_prefetch.py",)
FORGOTTEN = (
    "            try:\n                self.close()\n            finally:\n                vars(self).clear()",
    "            pass",
)
A_CONTEXT_EACH = (
    (GPU, "    atexit.register(_end, primary)\n", ""),
    (
        ENGINE,
        "self._slot, self._plan, self._images\n",
        "self._slot, self._plan, self._images\n        self._primary.detach()\n",
    ),
    (CUDA, "            del self._module\n", "            del self._module\n        self._primary.detach()\n"),
)
"""Whoever opens retains the primary context, and gives it back when it is closed."""
ENDED_BY_A_FAILURE = """self._primary = device.retain_primary_context()
        failing = __import__("contextlib").ExitStack()
        failing.push(lambda kind, *rest: kind and self._primary.detach())
        with failing, self.current():
"""

FAULTS = [
    Fault(
        "missing wait",
        ENGINE,
        "        self.stream.synchronize()\n        return self._answers",
        "        return self._answers",
        ENGINES,
    ),
    Fault(
        "default stream",
        ENGINE,
        "memset_d8_async(self.input, 0, size, self.stream)",
        "memset_d8(self.input, 0, size)",
        ENGINES,
    ),
    Fault(
        "used again too early", ENGINE, "return self._answers[:count].copy()", "return self._answers[:count]", ENGINES
    ),
    Fault("leaked graph", ENGINE, "            self._graph.close()\n", "            pass\n", ENGINES),
    Fault("wrong size", ENGINE, "int(np.prod(self._shape)) * 4", "int(np.prod(self._shape)) * 2", ENGINES),
    Fault(
        "wrong offset",
        ENGINE,
        "self._run.bind(INPUT, int(self.input))",
        "self._run.bind(INPUT, int(self.input) + 4)",
        ENGINES,
    ),
    Fault(
        "graph of another batch",
        ENGINE,
        "if self._graph is not None and batch == self._batch:",
        "if self._graph is not None:",
        ENGINES,
    ),
    Fault(
        "no wait before freeing",
        ENGINE,
        '"""Waits for queued work, then frees everything."""\n        self.stream.synchronize()',
        '"""Waits for queued work, then frees everything."""',
        ENGINES,
    ),
    Fault(
        "used again too early",
        PIPELINE,
        "while batch.images and not free:",
        "while batch.images and not running:",
        ENGINES,
    ),
    Fault(
        "used again too early",
        PIPELINE,
        "self._staging = kernel.new_staging()",
        "self._staging = engine.__dict__.setdefault('staging', kernel.new_staging())",
        ENGINES,
    ),
    Fault(
        "another stream",
        PIPELINE,
        "int(self._slot.input), self._slot.stream)",
        "int(self._slot.input), self._kernel._stream)",
        ENGINES,
    ),
    Fault(
        "wrong offset", PIPELINE, "int(self._slot.input), self._slot", "int(self._slot.input) + 16, self._slot", ENGINES
    ),
    Fault(
        "leaked lane",
        PIPELINE,
        "            lanes.pop().close()",
        "            lanes.pop()._slot.stream.synchronize(); break",
        ENGINES,
    ),
    Fault(
        "missing wait",
        CUDA,
        "            self._stream.synchronize()\n        return host_output",
        "        return host_output",
        EXECUTORS,
    ),
    Fault(
        "used again too early",
        CUDA,
        ".reshape(shape).copy()",
        ".reshape(shape)",
        ("../gpu/test_on_gpu.py -k stay_as_they_are",),
    ),
    Fault("wrong offset", CUDA, "int(device) + start for start", "int(device) + start + 16 for start", EXECUTORS),
    Fault(
        "pageable memory",
        CUDA,
        "self._cuda.pagelocked_empty(size + size // 4, np.uint8)",
        "np.empty(size + size // 4, np.uint8)",
        EXECUTORS,
    ),
    Fault(
        "leak of what was forgotten",
        GPU,
        *FORGOTTEN,
        (*ENGINES, *EXECUTORS),
    ),
    Fault("a context each", GPU, "@cache\n", "", (*ENGINES, *EXECUTORS), A_CONTEXT_EACH),
    Fault(
        "a context each, and what was forgotten",
        GPU,
        "@cache\n",
        "",
        ("test_engine.py", "test_executor.py -k forgotten"),
        (*A_CONTEXT_EACH, (GPU, *FORGOTTEN)),
    ),
    Fault(
        "objects outlive the context after a failed open",
        ENGINE,
        "self._primary = primary_context(self._cuda, 0)\n        with self.current():\n",
        ENDED_BY_A_FAILURE,
        ("test_engine.py -k does_not_open",),
    ),
    Fault("what a failure leaves", GPU, "            clear_frames(error.__traceback__)", "            pass", ENGINES),
    Fault("opened halfway", GPU, "                vars(self).clear()", "                pass", EXECUTORS),
    Fault(
        "used when closed",
        ENGINE,
        "        if self._closed:\n            raise",
        "        if False:\n            raise",
        ENGINES,
    ),
    Fault("closed twice", ENGINE, "        if self._closed:\n            return\n", "", ENGINES),
    Fault("used when closed", CUDA, "        if self.closed:\n", "        if False:\n", EXECUTORS),
    Fault("closed twice", CUDA, "        if self._kernels.closed:\n            return\n", "", EXECUTORS),
    Fault("no images", CUDA, "            if not images:\n", "            if False:\n", EXECUTORS),
    Fault("a rejected kernel is kept", CUDA, "                cubin.unlink()\n", "                pass\n", EXECUTORS),
    Fault("more than a launch takes", CUDA, "min(images - first, MOST_IMAGES))", "images - first)", EXECUTORS),
    Fault("leaked context", GPU, "        cuda.Context.pop()", "        pass", EXECUTORS),
    Fault("leaked primary context", GPU, "    primary.detach()", "    pass", EXECUTORS),
    Fault("missing wait", PREFETCH, "    own.wait_event(copies.record_event())\n", "", TRAINING),
    Fault("missing wait", PREFETCH, "    copies.wait_event(own.record_event())\n", "", TRAINING),
    Fault("missing wait", PREFETCH, "    current.wait_event(copied)\n", "", TRAINING),
    Fault("used again too early", PREFETCH, "        tensor.record_stream(current)\n", "        pass\n", TRAINING),
    Fault(
        "memory of a stream that ends",
        PREFETCH,
        "    images = bundle.new_empty(",
        "    torch.cuda.stream(torch.cuda.ExternalStream(0, 0)).__enter__(); images = bundle.new_empty(",
        ("test_prefetch.py -k traceback",),
    ),
    Fault(
        "wrong offset",
        CUDA,
        "at = output + first *",
        "at = output + 0 *",
        ("test_pipeline.py -k larger",),
    ),
    Fault(
        "wrong offset", PREFETCH, "bundle.data_ptr(), batch.starts", "bundle.data_ptr() + 16, batch.starts", TRAINING
    ),
]


def noticed(fault: Fault, copy: Path) -> str:
    """The first way in which a test or the driver notices `fault` in `copy`, which is restored; empty: none."""
    for name, right, wrong in ((fault.module, fault.right, fault.wrong), *fault.more):
        module = copy / name
        text = module.read_text()
        if right not in text:
            raise SystemExit(f"{name} no longer holds {right!r}: write the fault anew")
        module.write_text(text.replace(right, wrong, 1))
    report = copy.with_suffix(".report")
    settings = run.environment(report, copy) | {"PYTHONDONTWRITEBYTECODE": "1"}
    tests = " ".join(f"{copy}/tests/driver/{test}" for test in fault.tests).split(" ")
    command = [*run.PYTEST, "-x", *tests, *(["-k", f"not {run.EACH_ALLOCATION}"] if "-k" not in tests else [])]
    try:
        for way in run.WAYS:
            log = report.with_suffix(".log")
            with log.open("w") as output:
                counts = run.carried_out(command, settings | way.environment, report, copy, output, LIMIT)
            if counts["failed"] or any(counts[name] for name in run.ZERO):
                said = log.read_text().splitlines()
                if wrong := [line for line in said if line.startswith(("ERROR: ", "no tests ran"))]:
                    raise SystemExit(f"{fault.kind}: its tests do not run: {wrong[0]}")
                failed = [line for line in said if line.startswith(("FAILED ", "ERROR "))]
                otherwise = f"hangs for {LIMIT} s" if counts["hangs"] else "counts at the end"
                return f"{way}: {failed[0].split()[1].rpartition('/')[2] if failed else otherwise}"
    finally:
        subprocess.run(["git", "checkout", "--quiet", "."], cwd=copy, check=True)
    return ""


def copied(folder: Path) -> Path:
    """The last commit, and the library that was compiled here."""
    subprocess.run(["git", "clone", "--quiet", run.ROOT, folder], check=True)
    for library in run.ROOT.glob("trt_cls/preprocessing/_host*"):
        shutil.copy(library, folder / "trt_cls" / "preprocessing")
    return folder


def main() -> int:
    faults = [fault for fault in FAULTS if not sys.argv[1:] or any(name in fault.module for name in sys.argv[1:])]
    at_once = os.cpu_count() or 1
    copies: Queue[Path] = Queue()

    def planted(fault: Fault) -> bool:
        copy = copies.get()
        try:
            where = noticed(fault, copy)
        finally:
            copies.put(copy)
        print(f"{fault.kind}, {fault.module}: {fault.wrong.strip()!r}: {where or 'NOT NOTICED'}", flush=True)
        return bool(where)

    with tempfile.TemporaryDirectory() as folder:
        try:
            run.environment(Path(folder) / "report")  # builds, once for all
        except build.Missing as missing:
            print(f"faults: skipped, {missing}")
            return 0
        for number in range(at_once):
            copies.put(copied(Path(folder) / f"copy{number}"))
        with ThreadPoolExecutor(at_once) as pool:
            unnoticed = list(pool.map(planted, faults)).count(False)
    print(f"{len(faults)} faults, {unnoticed} not noticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
