"""The table of backends is complete, and a row is all that the command line, `doctor` and reports need of a new one."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.tiny_models import write_onnx
from trt_cls.doctor import checks
from trt_cls.doctor.facts import find_out
from trt_cls.engines import backends, open_engine
from trt_cls.engines.backends import BACKENDS, PROVIDERS, Backend, device_of
from trt_cls.errors import RequestError
from trt_cls.evaluation.report import PACKAGES


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_row_names_what_there_is(backend: Backend) -> None:
    module, _, name = backend.engine.rpartition(".")
    assert hasattr(import_module(f"trt_cls.engines.{module}"), name)
    assert set(backend.devices) <= set(PROVIDERS)
    assert backend.extra in (metadata("trt-cls").get_all("Provides-Extra") or ())
    assert set(backend.packages) <= set(PACKAGES)
    assert checks.CHECKS.get(backend.name) or backend.purpose, "doctor must say something of it"


def test_every_provider_opens_some_file() -> None:
    assert {name for backend in BACKENDS for name in backend.devices} == set(PROVIDERS)


@pytest.mark.parametrize(
    ("name", "provider", "device"),
    [
        ("a.onnx", "auto", "either"), ("a.onnx", "cuda", "gpu"), ("a.onnx", "openvino", "cpu"),
        ("a.plan", "auto", "gpu"), ("a.safetensors", "cpu", "cpu"), ("a.safetensors", "openvino", "cpu"),
    ],
)  # fmt: skip
def test_the_device_follows_from_file_and_provider(name: str, provider: Any, device: str) -> None:
    assert device_of(Path(name), provider) == device


def test_a_row_is_all_that_a_new_backend_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    new: Any = "new"
    with pytest.raises(RequestError, match='provider "new" is not known; expected one of auto, cpu'):
        open_engine(path, new)
    row = Backend("New", "new.Engine", (".onnx",), {new: "cpu"}, "new", ("new-runtime",), purpose="tests")
    opened = SimpleNamespace(Engine=lambda *given: given)
    monkeypatch.setitem(sys.modules, "trt_cls.engines.new", opened)  # type: ignore[arg-type]
    monkeypatch.setattr(backends, "PROVIDERS", (*PROVIDERS, "new"))
    for module in (backends, checks):
        monkeypatch.setattr(module, "BACKENDS", (*BACKENDS, row))
    assert open_engine(path, new, 2) == (path, new, 2)
    (finding,) = [finding for finding in checks.findings(find_out()) if finding.name == "New"]
    assert (finding.state, finding.fix) == ("absent", 'pip install "trt-cls[new]"; it runs tests')
