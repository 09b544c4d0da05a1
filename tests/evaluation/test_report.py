from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.browser import Browser
from support.tiny_models import CONTRACT
from trt_cls.data.folder import Sample
from trt_cls.data.stream import Skipped
from trt_cls.evaluation.compare import Change, Comparison, Verdict
from trt_cls.evaluation.evaluate import Evaluation, Predictions, Seconds
from trt_cls.evaluation.metrics import measure
from trt_cls.evaluation.report import comparison_page
from trt_cls.evaluation.report.evaluation_page import evaluation_page

NASTY = ("cat", "<img src=x onerror=alert(1)>", '"quote" & </script><b>', "ä \u2028 名")
"""Class names that would leave the page's text where they are not escaped."""


def evaluation(folder: Path, classes: tuple[str, ...], per_class: int, distinct: int = 8) -> Evaluation:
    """Answers, most of them right, for links to a few images."""
    random = np.random.default_rng(1)
    sources = [folder / f"source{number}.png" for number in range(distinct)]
    for source in sources:
        Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(source)
    samples = []
    for label in range(len(classes)):
        (folder / f"{label:04}").mkdir()
        for number in range(per_class):
            path = folder / f"{label:04}" / f"{number}.png"
            os.link(sources[(label + number) % distinct], path)
            samples.append(Sample(path, label))
    labels = np.array([sample.label for sample in samples])
    logits = random.standard_normal((len(samples), len(classes)), np.float32)
    logits[np.arange(len(samples)), labels] += np.sqrt(2 * np.log(len(classes))) + 0.3  # the highest of as many others
    powers = np.exp(2 * logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    predictions = Predictions(
        tuple(samples), probabilities, (Skipped(folder / "<b>.jpg", "<i>broken"),), Seconds(1.0, 2.0, 3.5)
    )
    top_k = min(5, len(classes))
    contract = replace(CONTRACT, classes=classes)
    return Evaluation(contract, "onnxruntime-cpu", predictions, top_k, measure(probabilities, labels, top_k))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluation(tmp_path_factory.mktemp("small"), NASTY, 30)


@pytest.fixture(scope="module")
def html(small: Evaluation) -> str:
    return evaluation_page(small, Path("runs/<model>.onnx"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, html: str, tmp_path: Path) -> Browser:
    browser.complaints.clear()
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser.look(1200, 900)
    browser.open(tmp_path / "report.html")
    return browser


def data(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def rows_of(page: Browser, table: str = "#classes") -> list[list[str]]:
    script = f"[...document.querySelectorAll('{table} tbody tr')].map(r => [...r.cells].map(c => c.textContent.trim()))"
    found: list[list[str]] = page.run(script)
    return found


def truth_and_guess(small: Evaluation) -> tuple[Any, Any]:
    truth = [sample.label for sample in small.predictions.samples]
    return np.array(truth), small.predictions.probabilities.argmax(axis=1)


def test_figures_are_those_of_scikit_learn(small: Evaluation, html: str, page: Browser) -> None:
    from sklearn import metrics as sklearn

    truth, guess = truth_and_guess(small)
    cards = page.run("[...document.querySelectorAll('.card b')].map(b => b.textContent)")
    probabilities = small.predictions.probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert cards[0] == f"{100 * sklearn.accuracy_score(truth, guess):.2f}\N{NO-BREAK SPACE}%"
    assert cards[2] == f"{100 * sklearn.balanced_accuracy_score(truth, guess):.2f}\N{NO-BREAK SPACE}%"
    assert f"macro F1: {sklearn.f1_score(truth, guess, average='macro'):.4f}" in html
    assert cards[3] == f"{sklearn.log_loss(truth, probabilities):.4f}"
    scores = sklearn.precision_recall_fscore_support(truth, guess)
    headings = page.run("[...document.querySelectorAll('#classes th')].map(c => c.textContent)")
    for index, row in enumerate(rows_of(page)):
        cells = dict(zip(headings, row, strict=True))
        precision, recall, f1, support = (values[index] for values in scores)
        expected = [str(support), f"{100 * recall:.1f}", f"{100 * precision:.1f}", f"{100 * f1:.1f}"]
        assert [cells[name] for name in ("Images", "Recall", "Precision", "F1")] == expected
    matrix = np.zeros((4, 4), int)
    for label, answer, count, _ in data(html)["cells"]:
        matrix[label, answer] = count
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(truth, guess))
    shown = [[int(cell or 0) for cell in row[1:]] for row in rows_of(page, ".matrix")]
    assert shown == matrix.tolist()


def test_reliability_diagram_is_scikit_learns_curve(small: Evaluation, html: str) -> None:
    from sklearn.calibration import calibration_curve

    truth, guess = truth_and_guess(small)
    confidence = small.predictions.probabilities.max(axis=1)
    accuracy, mean = calibration_curve(truth == guess, confidence, n_bins=15)
    titles = re.findall(r"<title>(\d+) images between .*?: (.*?)\s% sure, (.*?)\s% right</title>", html)
    assert sum(int(images) for images, _, _ in titles) == len(truth)
    assert [(sure, right) for _, sure, right in titles] == [
        (f"{100 * sure:.1f}", f"{100 * right:.1f}") for sure, right in zip(mean, accuracy, strict=True)
    ]


def test_opens_without_a_complaint_and_without_the_network(page: Browser) -> None:
    assert page.complaints == []
    assert page.run("document.images.length") >= 40
    assert page.run("[...document.images].every(image => image.src.startsWith('data:'))")


def test_a_click_on_a_heading_sorts(page: Browser) -> None:
    for column in (2, 4, 6):
        button = f"document.querySelectorAll('#classes th')[{column}].querySelector('button')"
        for direction in ("ascending", "descending"):
            page.run(f"{button}.click()")
            values = [float(row[column]) for row in rows_of(page)]
            assert values == sorted(values, reverse=direction == "descending")
            assert page.run(f"{button}.parentNode.ariaSort") == direction
    page.run("document.querySelector('#classes th button').click()")
    assert [row[0] for row in rows_of(page)] == sorted(NASTY, key=lambda name: '"<äc'.index(name[0]))
    assert page.complaints == []


def test_a_click_on_a_cell_shows_its_images(small: Evaluation, page: Browser) -> None:
    truth, guess = truth_and_guess(small)
    page.run("document.querySelector('[data-cell=\"0,1\"]').click()")
    assert page.run("viewer.open")
    assert page.run("document.getElementById('viewer-title').textContent") == f"cat, taken for {NASTY[1]}"
    names = page.run("[...viewer.querySelectorAll('figcaption')].map(caption => caption.title)")
    expected = {
        f"{sample.path.parent.name}/{sample.path.name}"
        for sample, label, answer in zip(small.predictions.samples, truth, guess, strict=True)
        if (label, answer) == (0, 1)
    }
    assert set(names) == expected
    assert page.run("[...viewer.querySelectorAll('img')].every(image => image.complete && image.naturalWidth)")
    page.run("viewer.querySelector('form button').click()")
    assert not page.run("viewer.open")


def test_a_click_on_a_class_leads_to_its_mistakes(page: Browser) -> None:
    page.run("document.querySelector('[data-class=\"1\"]').click()")
    assert page.run("document.getElementById('viewer-title').textContent") == NASTY[1]
    page.run("viewer.querySelector('li button').click()")
    assert page.run("document.getElementById('viewer-title').textContent").startswith(f"{NASTY[1]}, taken for ")
    assert page.complaints == []


def test_names_and_paths_stay_text(html: str, page: Browser) -> None:
    assert not re.search(r"<(i|b)>broken|<img src=x|<model>", html)
    assert [row[0] for row in rows_of(page)] == list(NASTY)
    assert page.run("document.querySelector('h1').textContent") == "runs/<model>.onnx"
    assert data(html)["classes"] == list(NASTY)


def test_says_everything_but_the_cells_images_without_javascript(browser: Browser, html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(tmp_path / "report.html")
        text = unescape(browser.run("document.body.innerText"))
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    for part in ("Confusion matrix", "Surest mistakes", "Least sure", "waiting for data", "Normalization", "Python"):
        assert part in text
    assert "Click" not in text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_fits_the_window_and_takes_the_readers_colors(page: Browser, width: int, dark: bool) -> None:
    page.look(width, 800, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    red, green, blue = map(int, re.findall(r"\d+", page.run("getComputedStyle(document.body).backgroundColor")))
    assert (red + green + blue < 3 * 64) == dark


def test_the_worst_of_many_classes_come_first_and_the_table_says_that_it_scrolls(tmp_path: Path) -> None:
    found = evaluation(tmp_path, tuple(f"class {number}" for number in range(60)), 4)
    html = evaluation_page(found, Path("model.onnx"))
    table = html[html.index('id="classes"') :]
    order = [int(index) for index in re.findall(r'data-class="(\d+)"', table)]
    recall = np.array([scores.recall for scores in found.metrics.per_class])
    assert order[:30] == np.argsort(recall, kind="stable")[:30].tolist()
    assert order[30:] == sorted(set(range(60)) - set(order[:30]))
    assert "The table scrolls: the 30 classes with the lowest recall come first" in html


def test_no_gap_over_a_matrix_of_short_labels_and_no_text_beyond_its_card(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(evaluation_page(evaluation(tmp_path, ("0", "1", "2"), 4), Path("m.onnx")))
    changed = (Change(tmp_path / "a.png", "n" * 60, "o" * 60, 0.9, 0.8, "p" * 60),)
    verdict = Verdict(12345, 12345, 12345, 12345, 12345)
    comparison = Comparison(12345, 0.9, 5, 0.95, 1.234e-5, 1.234e-5, changed, (), verdict)
    (tmp_path / "comparison.html").write_text(comparison_page(comparison, Path("a" * 99), Path("b.onnx")))
    browser.look(1200, 900)
    browser.open(tmp_path / "report.html")
    assert browser.run("document.querySelector('.matrix thead').getBoundingClientRect().height") < 34
    browser.open(tmp_path / "comparison.html")
    for width in (1280, 390):
        browser.look(width, 900)
        boxes = "[...document.querySelectorAll('.card, .card *, figcaption, h1')]"
        assert browser.run(f"{boxes}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.outerHTML)") == []


def test_an_image_that_is_gone_leaves_its_name(tmp_path: Path) -> None:
    found = evaluation(tmp_path, ("a", "b"), 4)
    for sample in found.predictions.samples:
        sample.path.unlink()
    html = evaluation_page(found, Path("model.onnx"))
    assert "<img" not in html
    assert "0001/3.png" in html


def test_a_path_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    found = evaluation(tmp_path, ("a", "b"), 4)
    strange = tmp_path / os.fsdecode(b"caf\xe9.png")
    found.predictions.samples[0].path.rename(strange)
    samples = (Sample(strange, 0), *found.predictions.samples[1:])
    html = evaluation_page(replace(found, predictions=replace(found.predictions, samples=samples)), Path("model.onnx"))
    assert b"caf?.png" in html.encode("utf-8")


@pytest.mark.slow
def test_a_large_set_stays_usable(tmp_path: Path, browser: Browser) -> None:
    """100,000 images in 1,000 classes, a third of them mistaken: under 10 MB, open after 2 s of work."""
    classes = tuple(f"n{index:08} a class of some name" for index in range(1000))
    html = evaluation_page(evaluation(tmp_path, classes, 100), Path("model.onnx"))
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    assert (tmp_path / "report.html").stat().st_size < 10e6
    browser.complaints.clear()
    browser.look(1200, 900)
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(tmp_path / "report.html")
    spent = {metric["name"]: metric["value"] for metric in browser.call("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 2  # seconds of the processor, whatever else the machine does
    assert len(rows_of(browser)) == 1000
    browser.run("document.querySelector('[data-class=\"7\"]').click()")
    browser.run("viewer.querySelector('li button').click()")
    assert browser.run("viewer.querySelector('figure, li') !== null")
    assert browser.complaints == []
