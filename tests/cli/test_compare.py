from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.tiny_models import COLORS, CONTRACT, probabilities, write_images, write_onnx
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
    assert f"{tmp_path / 'images' / 'red' / '0.png'}: A red, B green, is red" in capsys.readouterr().out
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


def test_labeled_folders_are_put_to_the_test(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_onnx(tmp_path / "b.onnx", gain=-4.0)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "top-1 accuracy       A 100.00%, B 0.00%" in out
    assert "McNemar's test       only A right 6, only B right 0: p = 0.0312, one is better" in out


def test_results_hold_the_changed_images(tmp_path: Path, arguments: list[str]) -> None:
    write_onnx(tmp_path / "b.onnx", gain=-4.0)
    assert main([*arguments, "-r", str(tmp_path / "results")]) == 0
    table = (tmp_path / "results" / "changed.csv").read_text().splitlines()
    assert table[0] == "path,label_a,confidence_a,label_b,confidence_b,truth"
    assert len(table) == 7
    html = (tmp_path / "results" / "comparison.html").read_text()
    assert html.count("<img") == 6
    assert "McNemar" in html


def test_layers_name_where_two_files_part(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--layers"]) == 0
    out = capsys.readouterr().out
    assert "first to differ      MatMul (MatMul), tensor logits: by 0.12 of its largest value, 4;" in out
    assert "other weights in MatMul (MatMul): weight" in out
    assert main(["compare", *[arguments[1]] * 2, *arguments[3:], "--layers"]) == 0
    assert "layers               4 compared, none differs by more than 0 of its range" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("channel_order", "bgr", "preprocessing.channel_order: rgb ≠ bgr"),
        ("mean", (0.0, 0.0, 1 / 255), "preprocessing.mean: (0.0, 0.0, 0.0) ≠ (0.0, 0.0, 0.00392"),
    ],
)
def test_other_pixels_are_named(
    tmp_path: Path, arguments: list[str], field: str, value: object, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = replace(CONTRACT, preprocessing=replace(CONTRACT.preprocessing, **{field: value}))  # type: ignore[arg-type]
    write_onnx(tmp_path / "b.onnx", changed)
    assert main(arguments) == 2
    assert named in capsys.readouterr().err
    assert main([*arguments, "--own-preprocessing", "--layers"]) == 2
    assert main([*arguments, "--own-preprocessing"]) == 0
    assert named in capsys.readouterr().out
