"""The recipes "how to add" of docs/architecture.md, followed in a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.recipes import RECIPES, carry_out

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each recipe gives in a copy of the package where all of them were followed."""
    from support.tiny_models import write_onnx

    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(ROOT / "trt_cls", root / "trt_cls", ignore=shutil.ignore_patterns("__pycache__"))
    write_onnx(root / "model.onnx")
    for edits in RECIPES.values():
        carry_out(edits, root)
    path = os.pathsep.join((str(root), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "recipes.py"), *RECIPES],
        cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("A spec field", 0.25),
        ("An architecture", [2, 4]),
        ("An optimizer", ["Adagrad", 0.5]),
        ("An engine backend", [[0.333, 0.333, 0.333]]),
        ("A report column", [0.5, 0.5, 1.0]),
    ],
)
def test_what_a_recipe_adds_works(heading: str, expected: Any, results: dict[str, Any]) -> None:
    assert results[heading] == expected


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_names_the_files_that_change(heading: str) -> None:
    recipe = TEXT.partition(f"### {heading}\n")[2].partition("\n##")[0]
    named = set(re.findall(r"`(trt_cls/[^`]+)`", recipe))
    changed = {re.sub("tinynet|uniform", "NAME", name) for name in RECIPES[heading]}
    assert changed == named


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in (ROOT / "trt_cls").glob("*/__init__.py")}
    table = TEXT.partition("| package |")[2].partition("\n\n")[0]
    assert packages <= set(re.findall(r"`(\w+)/`", table))
