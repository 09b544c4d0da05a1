"""Plants a fault for each promise in a copy of the last commit and names the test that fails.

    python tests/support/mutations.py ["PROMISE" ...]

The copy stands alone, so that the tests have no more than the repository gives. Exits 1 where a fault goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Fault(NamedTuple):
    """A promise, what is written where in a file instead of what keeps it, and where a test notices."""

    promise: str
    module: str
    right: str
    wrong: str
    tests: str


FAULTS = [
    Fault(
        "pixels",
        "trt_cls/preprocessing/pillow.py",
        "round(have / 2) - round(want / 2)",
        "(have - want) // 2",
        "preprocessing/test_pillow.py -k nvidias",
    ),
    Fault(
        "pixels of the C++ executor",
        "kernels/preprocess_host.cpp",
        "ROUNDING = 1 << (PRECISION - 1)",
        "ROUNDING = 1 << (PRECISION - 2)",
        "preprocessing/test_cpu.py -k photographs",
    ),
    Fault(
        "parameter counts",
        "trt_cls/models/families/squeezenet.py",
        "6: (48, 192)",
        "6: (48, 193)",
        "models/test_parameter_counts.py -k squeezenet",
    ),
    Fault(
        "schedules",
        "trt_cls/training/optimization.py",
        "progress > point",
        "progress >= point",
        "training/test_schedules.py",
    ),
    Fault(
        "pruning",
        "trt_cls/pruning/selection.py",
        "scores > criteria.threshold",
        "scores * 1.001 > criteria.threshold",
        "pruning/test_reference.py",
    ),
    Fault(
        "resume",
        "trt_cls/training/learner.py",
        'self._optimizer.load_state_dict(state["optimizer"])',
        "pass",
        "training/test_repeatability.py -k resum",
    ),
    Fault(
        "parity",
        "trt_cls/export/parity.py",
        "np.abs(self.expected - self.found).max(initial=0)",
        "np.abs(self.expected - self.found).min(initial=0)",
        "export/test_parity.py",
    ),
    Fault(
        "INT8 ranges",
        "trt_cls/models/int8_ranges.py",
        "BINS - int(np.argmin(divergences[::-1]))",
        "BINS - int(np.argmin(divergences[::-1])) // 2",
        "models/test_int8_ranges.py",
    ),
    Fault(
        "top-k with the last batch",
        "trt_cls/data/stream.py",
        "range(0, len(samples), batch_size))",
        "range(0, len(samples) - batch_size + 1, batch_size))",
        "evaluation/test_evaluate.py",
    ),
    Fault(
        "top-k accuracy",
        "trt_cls/evaluation/metrics.py",
        "(likelier.sum(axis=1) < k)",
        "(likelier.sum(axis=1) <= k)",
        "evaluation/test_metrics.py",
    ),
    Fault(
        "TAO import",
        "trt_cls/models/tao/hdf5.py",
        '"running_mean", "running_var"',
        '"running_var", "running_mean"',
        "models/test_tao_hdf5.py -k answers_as_it_did",
    ),
    Fault(
        "contract refusal",
        "trt_cls/preprocessing/description.py",
        "if asked != own and",
        'if asked != own and name != "mean" and',
        "evaluation/test_agreement.py",
    ),
    Fault(
        "Triton client",
        "trt_cls/serving/triton_client.py",
        "zip(batch.samples, probabilities(",
        "zip(batch.samples[::-1], probabilities(",
        "export/test_triton.py -k 8_bit_pixels",
    ),
    Fault(
        "DeepStream numbers",
        "trt_cls/serving/deepstream.py",
        "tuple(mean * divisor for mean in preprocessing.mean)",
        "tuple(preprocessing.mean)",
        "export/test_deepstream.py -k nvinfers_arithmetic",
    ),
    Fault(
        "several labels per image",
        "trt_cls/export/torch_to_onnx.py",
        'if task == "multi":',
        'if task == "none":',
        "export/test_multi_label.py -k sigmoid",
    ),
    Fault(
        "thresholds from their half of validation",
        "trt_cls/training/validation.py",
        "halves(folder.samples)[1]",
        "halves(folder.samples)[0]",
        "training/test_multi_label.py -k half",
    ),
    Fault(
        "coverage",
        "trt_cls/evaluation/prediction_sets.py",
        "math.ceil(exact * (len(scores) + 1))",
        "math.ceil(exact * len(scores))",
        "evaluation/test_prediction_sets.py -k beta_binomial",
    ),
    Fault(
        "a copy of a shard is the one of the index",
        "trt_cls/stores.py",
        "(digest := file_sha256(part)) != wanted.sha256",
        "(digest := file_sha256(part)) == ''",
        "data/test_stores.py -k flipped",
    ),
    Fault(
        "a copy that is open stays in the cache",
        "trt_cls/store_cache.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "data/test_stores.py -k limit_and_what_is_open",
    ),
    Fault(
        "secrets of URLs reach no text",
        "trt_cls/urls.py",
        "redacted(text: object) -> str:",
        "redacted(text: object) -> str:\n    return str(text)",
        "data/test_stores.py -k secrets",
    ),
]


def failing(fault: Fault, copy: Path) -> str:
    """The first test that fails with `fault` in `copy`, which is restored; empty where none does."""
    module = copy / fault.module
    text = module.read_text()
    if fault.right not in text:
        raise SystemExit(f"{fault.module} no longer holds {fault.right!r}: write the fault anew")
    module.write_text(text.replace(fault.right, fault.wrong, 1))
    command = f'"{sys.executable}" -m pytest -q -x -p no:cacheprovider -m "not slow" {fault.tests}'
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, shell=True, cwd=copy / "tests", env=environment, capture_output=True, text=True)
    finally:
        module.write_text(text)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return failed[0].removeprefix("tests/") if failed else ""


def main() -> int:
    wanted = sys.argv[1:] or [fault.promise for fault in FAULTS]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
        for library in ROOT.glob("trt_cls/preprocessing/_host*"):
            shutil.copy(library, copy / "trt_cls" / "preprocessing")
        print("| promise | planted fault | test that fails |\n|---|---|---|")
        for fault in FAULTS:
            if fault.promise in wanted:
                test = failing(fault, copy)
                unnoticed += not test
                change = f"`{fault.module}`: `{fault.right}` → `{fault.wrong}`"
                print(f"| {fault.promise} | {change} | {f'`{test}`' if test else '**none**'} |", flush=True)
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
