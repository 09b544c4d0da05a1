"""choose from end to end, over an export that writes networks of three colors: resumption, rejection, exit status."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.tiny_models import CONTRACT, write_images, write_onnx
from trt_cls.choice import measure as room
from trt_cls.choice.table import read_rows
from trt_cls.cli import main
from trt_cls.contract import METADATA_KEY
from trt_cls.errors import ExportError, MissingDependency

pytest.importorskip("onnxruntime")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is exported; "int8" gets the classes wrong, "fp8" is refused; only ONNX Runtime is there."""
    names: list[str] = []

    def export(model: Path, output: Path, *, precision: Any, **others: Any) -> None:
        names.append(output.stem)
        if precision == "fp8":
            raise ExportError("the fp8 file does not answer as the network does")
        share = 1.0 if precision == "int8" else None
        gain = -4.0 if output.stem.endswith("int8") else 4.0
        write_onnx(output, replace(CONTRACT, precision=precision, eight_bits=share), gain)

    def opened(path: Path, provider: Any) -> Any:
        if provider != "cpu":
            raise MissingDependency(provider, "this test", provider)
        return real(path, provider)

    real = room.open_engine
    monkeypatch.setattr(room, "export", export)
    monkeypatch.setattr(room, "open_engine", opened)
    return names


@pytest.fixture
def request_of(tmp_path: Path) -> list[str]:
    for name in ("best", "thin"):
        metadata = {METADATA_KEY: CONTRACT.to_json()}
        save_file({"w": np.zeros(len(name), np.float32)}, tmp_path / f"{name}.safetensors", metadata)
    images = write_images(tmp_path / "images", 4)
    folders = ["--images", str(images), "--calibration-images", str(images), "-r", str(tmp_path / "run")]
    return ["choose", "-m", str(tmp_path / "best.safetensors"), *folders, "--seconds", "0"]


def test_a_bad_int8_is_measured_and_rejected_and_a_refused_fp8_is_named(
    made: list[str], request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = ["--pruned", str(tmp_path / "thin.safetensors")]
    assert main([*request_of, *pruned, "--variants", "fp16,int8,fp8"]) == 0
    assert made == ["fp32", "fp16", "int8", "fp8", "thin-fp16", "thin-int8", "thin-fp8"]
    rows = {row.name: row for row in read_rows(tmp_path / "run" / "choose.csv")}
    assert list(rows) == ["fp32", "fp16", "int8", "thin-fp16", "thin-int8"]
    assert (rows["fp32"].top1, rows["int8"].top1, rows["int8"].share8) == (1.0, 0.0, 1.0)
    assert rows["int8"].mcnemar_p == pytest.approx(2 * 0.5**12)
    assert rows["fp32"].bytes == (tmp_path / "run" / "fp32.onnx").stat().st_size
    said = capsys.readouterr()
    assert "int8 on cpu: loses 100.00 points of top-1" in said.out
    assert "fp8: the fp8 file does not answer" in said.err
    assert not said.out.splitlines()[-1].endswith("int8.onnx")
    for kind in ("md", "html"):
        assert "loses 100.00 points" in (tmp_path / "run" / f"choose.{kind}").read_text()


def test_a_stopped_run_goes_on_where_it_was_stopped(
    made: list[str], request_of: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = room.evaluate
    begun = tmp_path / "run" / ".int8.onnx.killed.onnx"
    begun.parent.mkdir()
    begun.write_bytes(b"half")

    def stopped(engine: Any, *arguments: Any, **how: Any) -> Any:
        if engine.contract.precision == "int8":
            raise KeyboardInterrupt
        return whole(engine, *arguments, **how)

    monkeypatch.setattr(room, "evaluate", stopped)
    assert main([*request_of, "--variants", "fp16,int8"]) == 130
    before = read_rows(tmp_path / "run" / "choose.csv")
    assert [row.name for row in before] == ["fp32", "fp16"]
    monkeypatch.setattr(room, "evaluate", whole)
    assert main([*request_of, "--variants", "fp16,int8"]) == 0
    assert made == ["fp32", "fp16", "int8"]  # each once
    assert read_rows(tmp_path / "run" / "choose.csv")[:2] == before
    assert not begun.exists()


def test_a_folder_of_another_request_is_refused(
    made: list[str], request_of: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*request_of, "--variants", "fp32"]) == 0
    assert main([*request_of, "--variants", "fp32", "-b", "8"]) == 2
    assert "holds measurements of another request: batch_size 32, here 8" in capsys.readouterr().err


def test_a_table_decides_without_measuring_and_says_what_fails(
    made: list[str], request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*request_of, "--variants", "fp32"]) == 0
    table, name = str(tmp_path / "run" / "choose.csv"), "of_a_network_with_a_long_name-fp16"
    with Path(table).open("a") as file:
        file.write(Path(table).read_text().splitlines()[1].replace("fp32", name, 1) + "\n")
    capsys.readouterr()
    assert main(["choose", "--from", table, "--max-latency", "1s", "--max-size", "10kB"]) == 0
    assert f"{name}  cpu " in capsys.readouterr().out  # not folded where it is not a terminal
    assert main(["choose", "--from", table, "--max-size", "0.1kB"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: no variant fits: fp32 on cpu comes nearest, but has 0.00 MB, ")
    assert made == ["fp32"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "-m CHECKPOINT, or --from choose.csv"),
        (["-m", "a.safetensors"], "add -r DIR"),
        (["--from", "a.csv", "--max-latency", "5"], "such as 5ms"),
        (["--from", "a.csv", "--max-size", "20 parsecs"], "such as 20MB"),
        (["--from", "a.csv"], "can't be read"),
        (["--from", "a.csv", "--variants", "fp32"], "--from with --variants: expected one of them"),
        (["-m", "a.safetensors", "-r", "r", "--variants", "fp4"], '"fp4" is unknown'),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["choose", *flags]) == 2
    assert message in capsys.readouterr().err
