"""A model repository for Triton: configuration, labels, model, and a client that makes the pixels by the contract.

Fields and their meaning are those of Triton's model_config.proto. The configuration carries the model contract as a
parameter, which Triton hands out to clients. The client itself is `triton_client`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import Profile
from trt_cls.contract import INPUT, METADATA_KEY, OUTPUT, Contract
from trt_cls.files import write_text
from trt_cls.serving.common import ServedPlan, check_servable, copy_plan, filled, render, safe_name

CONFIG, LABELS_TXT, CLIENT = "config.pbtxt", "labels.txt", "client.py"
VERSION = "1"
DATA_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
QUEUE_DELAY = 1000
"""Microseconds that a request may wait for others to share its batch; a camera's frame lasts 33,000."""


def write_triton(onnx_file: Path, plan: ServedPlan, folder: Path, say: Callable[[str], None]) -> None:
    """Adds the model to the model repository `folder`, as `folder`/NAME with version 1: the plan, else `onnx_file`.

    Raises:
        RequestError: see `check_request`; or `folder` can't be written to.
    """
    contract = read_contract(onnx_file)
    check_request(contract, plan.profile)
    name = safe_name(onnx_file.stem)
    with filled(folder / name, last=CONFIG) as draft:
        version = draft / VERSION
        version.mkdir()
        if plan.path:
            copy_plan(plan.path, version / "model.plan")
        else:
            shutil.copyfile(onnx_file, version / "model.onnx")
        write_text(draft / LABELS_TXT, "".join(f"{label}\n" for label in contract.classes))
        shutil.copyfile(Path(__file__).with_name("triton_client.py"), draft / CLIENT)
        settings = render(
            "triton_config.pbtxt.j2",
            name=name,
            plan=plan,
            contract=contract,
            contract_json=json.dumps(contract.to_json(), ensure_ascii=False),
            key=METADATA_KEY,
            input=INPUT,
            output=OUTPUT,
            labels=LABELS_TXT,
            data_type=DATA_TYPES[contract.preprocessing.input_type],
            queue_delay=QUEUE_DELAY,
        )
        write_text(draft / CONFIG, settings)
    say(f"wrote {folder / name} with the {'engine' if plan.path else f'ONNX file, no engine: {plan.why}'}")
    say(f"  tritonserver --model-repository {folder}, then python {folder / name / CLIENT} IMAGES")


def check_request(contract: Contract, profile: Profile) -> None:
    """Raises a RequestError where Triton can't serve a model of this contract in these batches."""
    check_servable(contract.classes, profile, "\n", "Triton")
