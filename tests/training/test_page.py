"""training.html, in a browser and as numbers."""

from __future__ import annotations

import base64
import io
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.browser import Browser
from support.tiny_models import CONTRACT, RGB
from trt_cls.data.loader import TrainingBatch
from trt_cls.data.stream import Skipped
from trt_cls.preprocessing.pillow import normalize
from trt_cls.spec.experiment import NO_EXTENSIONS
from trt_cls.training.logs import EpochRow
from trt_cls.training.logs.page import TrainingPage

NASTY = ("cat", "<img src=x onerror=alert(1)>", "a class of some longer name")


def row(epoch: int, classes: int = 3) -> EpochRow:
    recalls = tuple(epoch / 200 + index / (2 * classes) for index in range(classes))
    return EpochRow(epoch, 0.5, 2 / epoch, 0.1, epoch / 200, 1 / epoch, 0.25, 0.25, 0.5, 0.5, recalls, "")


def page_of(folder: Path, classes: tuple[str, ...], preprocessing: Any) -> TrainingPage:
    setup = SimpleNamespace(
        contract=replace(CONTRACT, classes=classes, preprocessing=preprocessing), extensions=NO_EXTENSIONS,
        config=SimpleNamespace(n_epochs=120), train=SimpleNamespace(samples=()), val=SimpleNamespace(samples=()),
    )  # fmt: skip
    skipped = (Skipped(folder / "<b>broken.jpg", "<i>truncated"),)
    return TrainingPage(SimpleNamespace(root=folder, page=folder / "training.html"), setup, lambda: skipped)  # type: ignore[arg-type]


def shown(html: str) -> list[Any]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_pictures_are_the_networks_own_pixels_in_every_mode(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for order, divisor, mean, std in (("bgr", 1.0, (103.9, 116.8, 123.7), (1.0, 1.0, 1.0)),
                                      ("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                                      ("rgb", 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))):  # fmt: skip
        described = replace(RGB, channel_order=order, divisor=divisor, mean=mean, std=std)
        images = torch.stack([torch.from_numpy(normalize(image, described)) for image in pixels])
        targets = torch.tensor([[0.7, 0.3, 0.0], [0.0333, 0.0333, 0.9333]] * 6)
        page = page_of(tmp_path, NASTY, described)
        page.first_batch(1, TrainingBatch(images, targets, ()))
        page.epoch_done([row(1)], torch.nn.Identity(), best=True, seconds=1.0)
        html = (tmp_path / "training.html").read_text()
        np.testing.assert_array_equal(shown(html), pixels)
        assert "cat 70\N{NO-BREAK SPACE}%" in html
        assert "<figcaption>a class of some longer name</figcaption>" in html, "smoothing is no mixture"


def test_a_training_of_one_epoch_without_penalty_and_without_a_right_answer_is_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path, NASTY, RGB)
    nothing = EpochRow(3, 0.0, 2.5, 0.1, 0.0, 2.4, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), "all 9 answers are cat")
    page.epoch_done([nothing], torch.nn.Identity(), best=True, seconds=1.0)
    html = (tmp_path / "training.html").read_text()
    assert html.count('<svg class="plot"') == 4
    page.epoch_done([replace(nothing, epoch=1, val_loss=323.0), nothing], torch.nn.Identity(), best=True, seconds=1.0)
    spiked = (tmp_path / "training.html").read_text()
    assert "epoch 1: 323" in spiked
    assert ">400<" not in spiked, "the spike is cut off, not its value"
    assert "In the best epoch all 9 answers are cat." in html
    assert "As the network sees it" not in html, "no batch was seen in this run"


def test_it_fits_both_windows_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, tuple(f"{name}{number}" for number in range(34) for name in NASTY), RGB)
    rows = [row(epoch, 102) for epoch in range(1, 31)]
    page.first_batch(1, TrainingBatch(torch.zeros(9, 3, 16, 16), torch.eye(102)[:9], ()))
    page.epoch_done(rows, torch.nn.Identity(), best=True, seconds=1.0)
    with Browser() as browser:
        for width, dark in ((1280, False), (390, True)):
            browser.look(width, 900, dark=dark)
            browser.open(tmp_path / "training.html")
            assert browser.run("document.documentElement.scrollWidth") <= width
        text = browser.run("document.body.innerText")
        assert browser.complaints == []
        assert browser.run("document.querySelectorAll('.charts svg').length") == 4
        assert browser.run("document.querySelectorAll('.over-time tbody tr').length") == 30
    for part in ("30 of 102 classes", "<b>broken.jpg", "<i>truncated", NASTY[1], "epoch 30 of 120 done"):
        assert part in text


def test_an_epoch_costs_less_than_50_ms(tmp_path: Path) -> None:
    page = page_of(tmp_path, tuple(f"class {number}" for number in range(1000)), RGB)
    rows = [row(epoch, 1000) for epoch in range(1, 121)]
    page.epoch_done(rows, torch.nn.Identity(), best=True, seconds=1.0)  # compiles the template
    start = time.process_time()
    for _ in range(3):
        page.epoch_done(rows, torch.nn.Identity(), best=True, seconds=1.0)
    assert (time.process_time() - start) / 3 < 0.05
