from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trt_cls.cli import main
from trt_cls.export import export as exporting
from trt_cls.export.int8 import Int8


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What reaches the export, which then ends."""
    given: dict[str, Any] = {}

    def record(model: Path, output: Path, **others: Any) -> exporting.ExportResult:
        given.update(others)
        return exporting.ExportResult(output, "int8", None, None, None, "not asked for")

    monkeypatch.setattr(exporting, "export", record)
    return given


def run(*flags: str) -> int:
    return main(["export", "-m", "model.safetensors", "-o", "model.onnx", "--builder", "none", *flags])


@pytest.mark.parametrize("flag", [["--int8"], ["--data_type", "int8"]])
def test_flags_reach_the_export(asked: dict[str, Any], flag: list[str]) -> None:
    flags = ["--calibration-images", "photos", "--calibration-batches", "4", "--calibration-method", "entropy"]
    assert run(*flag, *flags, "--int8-keep", "first,last", "--int8-auto", "0.5", "--embed-preprocessing") == 0
    assert asked["precision"] == "int8"
    assert asked["int8"] == Int8(Path("photos"), 4, "entropy", ("first", "last"), 0.5)
    assert asked["embed"] is True


def test_flags_of_tao_and_the_defaults(asked: dict[str, Any]) -> None:
    assert run("--data_type", "int8", "--cal_image_dir", "photos", "--batches", "10") == 0
    assert asked["int8"] == Int8(Path("photos"), 10)
    assert run("--int8") == 0
    assert (asked["int8"], asked["embed"]) == (Int8(None, 32, "auto", (), None), False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8", "--fp16"], "--fp16 and --int8 contradict each other"),
        (["--int8", "--data_type", "fp16"], "--int8 and --data_type fp16 contradict"),
        (["--calibration-images", "photos"], "belong to --int8"),
        (["--fp16", "--int8-auto", "1"], "belong to --int8"),
        (["--int8", "--int8-keep", "middle"], '"middle" is unknown; expected first or last'),
        (["--int8", "--int8-auto", "-1"], "-1"),
        (["--int8", "--calibration-batches", "0"], "0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(*flags) == 2
    assert message in capsys.readouterr().err
    assert asked == {}
