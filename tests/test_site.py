"""The pages of docs/ as mkdocs builds them: in a browser, from a disk, without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "404.html").unlink()  # for web servers: its addresses begin with /
    return folder


@pytest.mark.slow
def test_the_site_has_all_pages_and_asks_no_other_host(site: Path) -> None:
    assert {page.stem for page in site.glob("*.html")} == {page.stem for page in DOCS.glob("*.md")}
    pages = "".join(page.read_text(encoding="utf-8") for page in site.glob("*.html"))
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", pages) == []


def test_every_page_has_one_title() -> None:
    for page in DOCS.glob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1, page.name


@pytest.mark.slow
def test_no_page_complains_or_is_wider_than_the_window(site: Path) -> None:
    with Browser() as browser:
        for page in sorted(site.glob("*.html")):
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                browser.look(width, 900, dark=dark)
                browser.open(page)
                shown = browser.run("[document.documentElement.scrollWidth, document.documentElement.dataset.bsTheme]")
                assert shown == [width, "dark" if dark else "light"], page.name
                assert browser.complaints == [], page.name


def test_every_picture_of_the_pages_is_drawn_and_described() -> None:
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "```mermaid" not in text, page.name
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert words, page.name
            assert (DOCS / target).exists(), target
            if target.endswith(".svg"):
                drawing = (DOCS / target).read_text(encoding="utf-8")
                assert "prefers-color-scheme: dark" in drawing
                assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_picture_of_the_packages_is_the_order_of_imports() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows: dict[str, list[str]] = {}
    for text in ElementTree.parse(DOCS / "pictures/packages.svg").iter("{http://www.w3.org/2000/svg}text"):
        if text.get("class") is None:
            rows.setdefault(text.attrib["y"], []).append(str(text.text))
    assert [" | ".join(f"trt_cls.{room}" for room in row) for row in rows.values()] == layers
