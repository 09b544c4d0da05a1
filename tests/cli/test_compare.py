from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import COLORS, CONTRACT, probabilities, write_images, write_onnx

from trt_cls.cli import main

GAIN = 3.5
DIFFERENCE = probabilities(COLORS["red"])[0] - probabilities(COLORS["red"], GAIN)[0]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Two models with the same labels and slightly different probabilities, and images."""
    a, b = write_onnx(tmp_path / "a.onnx"), write_onnx(tmp_path / "b.onnx", gain=GAIN)
    return ["compare", str(a), str(b), "--images", str(write_images(tmp_path / "images", 2))]


def test_prints_how_far_two_models_are_apart(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "images               6, 0 skipped" in out
    assert "top-1 agreement      100.00%, 0 labels changed" in out
    assert f"max |Δprobability|   {DIFFERENCE:.3g}, 99 % of images ≤ {DIFFERENCE:.3g}" in out


@pytest.mark.parametrize(("factor", "status"), [(0.99, 1), (1.01, 0)])
def test_max_diff_is_a_bound(
    arguments: list[str], factor: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--max-diff", str(DIFFERENCE * factor)]) == status
    assert ("(--max-diff)" in capsys.readouterr().err) == bool(status)


def test_min_agreement_is_a_bound(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The opposite sign moves the label of every image: of red to green, of green and blue to red."""
    write_onnx(tmp_path / "b.onnx", gain=-4.0)
    assert main([*arguments, "--min-agreement", "0"]) == 0
    assert f"{tmp_path / 'images' / 'red' / '0.png'}: A red, B green" in capsys.readouterr().out
    assert main([*arguments, "--min-agreement", "0.01"]) == 1
    assert "top-1 agreement is 0.0000; expected at least 0.01" in capsys.readouterr().err


def test_answers_that_are_no_numbers_are_out_of_bounds(tmp_path: Path, arguments: list[str]) -> None:
    write_onnx(tmp_path / "b.onnx", gain=float("nan"))
    assert main([*arguments, "--max-diff", "1"]) == 1


def test_other_classes_are_refused(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_onnx(tmp_path / "b.onnx", replace(CONTRACT, classes=("red", "green", "violet")))
    assert main(arguments) == 2
    assert "violet" in capsys.readouterr().err


def test_images_come_from_the_spec_too(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.txt"
    spec.write_text(f'model_config {{ }} eval_config {{ eval_dataset_path: "{tmp_path / "images"}" }}')
    assert main([*arguments[:3], "-e", str(spec)]) == 0
    assert main(arguments[:3]) == 2
    assert "expected --images DIR, or -e SPEC" in capsys.readouterr().err
