"""docs/architecture.md names files and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text()
PLACES = re.findall(r"`([\w/]+\.py)`: ([^;|]*`)", MAP.partition("## Where to change it")[2].partition("\n## ")[0])


def test_every_file_of_the_map_exists() -> None:
    files = {file for file in re.findall(r"`(?:trt_cls/|tests/)?([\w/]+\.py)`", MAP) if "NAME" not in file}
    assert len(files) > 40
    homes = (ROOT / "trt_cls", ROOT / "tests")
    assert [file for file in sorted(files) if not any((home / file).is_file() for home in homes)] == []


@pytest.mark.parametrize(("file", "names"), PLACES)
def test_what_is_to_be_changed_is_where_the_map_says(file: str, names: str) -> None:
    text = (ROOT / "trt_cls" / file).read_text()
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^ *(?:def |class )?{name}\b *[=:(]", text, re.MULTILINE), name
