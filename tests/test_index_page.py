"""What an index shows of a wheel: README as setup.py hands it over."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> str:
    given: dict[str, Any] = {}
    pytest.importorskip("setuptools")
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return str(given["long_description"])


def test_no_link_of_the_text_leads_nowhere(description: str) -> None:
    assert [target for target in re.findall(r"\]\(([^)]*)\)", description) if "://" not in target] == []
    assert "![" not in description


def test_the_paths_in_it_are_files_of_the_source_distribution(description: str) -> None:
    paths = re.findall(r"`((?:docs|benchmarks|specs)/[^`]*)`", description)
    assert "docs/index.md" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_no_table_of_pages_is_left_as_bare_words(description: str) -> None:
    assert "|---" not in description
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ .+", readme, flags=re.MULTILINE)
    assert re.findall(r"^#+ .+", description, flags=re.MULTILINE) == headings
    assert description.rstrip().endswith(readme.rstrip().splitlines()[-1])
