from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.tiny_models import CONTRACT
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import Parity, Profile, Sidecar, file_sha256, read_sidecar, sidecar_path, write_sidecar
from trt_cls.engines.sidecar import read_plan
from trt_cls.errors import ArtefactError

PLAN = b"a plan"
SIDECAR = Sidecar(
    contract=replace(CONTRACT, classes=("Käse", "a b", "c")),
    sha256=hashlib.sha256(PLAN).hexdigest(),
    builder="tensorrt-rtx",
    builder_version="1.7.1",
    compute_capabilities=("8.9", "12.0"),
    gpu="",
    profile=Profile(1, 8, 32),
    onnx="model.onnx",
    onnx_sha256="0" * 64,
    parity=Parity(100, 0.99, 0.001, "100 images"),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(PLAN)
    write_sidecar(path, SIDECAR)
    return path


@pytest.mark.parametrize("sidecar", [SIDECAR, replace(SIDECAR, parity=None)])
def test_what_is_written_is_read_back(plan: Path, sidecar: Sidecar) -> None:
    write_sidecar(plan, sidecar)
    assert read_sidecar(plan) == sidecar
    assert read_contract(plan) == sidecar.contract


def test_stands_beside_a_pristine_plan(plan: Path) -> None:
    assert sidecar_path(plan) == plan.parent / "model.engine.json"
    assert plan.read_bytes() == PLAN
    assert json.loads(sidecar_path(plan).read_text(encoding="utf-8"))["contract"]["classes"] == ["Käse", "a b", "c"]


def test_fingerprint_is_sha256(plan: Path) -> None:
    assert file_sha256(plan) == SIDECAR.sha256
    assert read_plan(plan, SIDECAR) == PLAN


def test_a_changed_plan_is_refused(plan: Path) -> None:
    plan.write_bytes(PLAN + b"!")
    with pytest.raises(ArtefactError, match="SHA-256"):
        read_plan(plan, SIDECAR)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "profile": 3}'])
def test_a_damaged_sidecar_is_named(plan: Path, text: str) -> None:
    sidecar_path(plan).write_text(text)
    with pytest.raises(ArtefactError, match=r"model.engine.json: can't be read"):
        read_sidecar(plan)


def test_a_plan_alone_is_refused(plan: Path) -> None:
    sidecar_path(plan).unlink()
    with pytest.raises(ArtefactError, match=r"model.engine.json is not beside it"):
        read_contract(plan)
