from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trt_cls.cli import main
from trt_cls.doctor.checks import Finding

SOUND = Finding("torch", "ok", "2.14")
ABSENT = Finding("GPU", "absent", "no driver", "install it")
BROKEN = Finding("ONNX Runtime", "broken", "two of them", "pip uninstall one")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the checks find."""
    found: list[Finding] = [SOUND, ABSENT]
    monkeypatch.setattr("trt_cls.doctor.checks.findings", lambda facts: found)
    return found


def test_absent_parts_are_no_fault(machine: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "torch", "2.14"],
        ["–", "GPU", "no", "driver"],
        ["→", "install", "it"],
    ]


def test_broken_parts_end_with_status_1_and_the_cure(
    machine: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.append(BROKEN)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "→ pip uninstall one" in out
    assert err.startswith("error: some installed packages do not work together: ONNX Runtime;")


def test_json_holds_every_finding(machine: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    machine.append(BROKEN)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [entry["state"] for entry in found] == ["ok", "absent", "broken"]
    assert set(found[0]) == {"name", "state", "found", "fix"}


def test_imports_nothing_heavy() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "tensorrt", "tensorrt_rtx"}
    code = f"import sys; from trt_cls.cli import main; main(['doctor']); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
