"""Plain lines where the output is no terminal, a bar where it is."""

from __future__ import annotations

import io

import torch

from trt_cls.training.learner import EpochMeans
from trt_cls.training.logs import EpochRow
from trt_cls.training.logs.console import Reporter

ROW = EpochRow(epoch=1, acc=0.5, loss=1.25, lr=0.01, val_acc=0.75, val_loss=0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO) -> str:
    reporter = Reporter(stream)
    reporter.epoch_started(1, 3, steps=2, done=0)
    reporter.step_done(1, 8, lambda: EpochMeans(1.5, 0.25, 8))
    reporter.epoch_stopped()
    reporter.epoch_done([ROW], torch.nn.Identity(), seconds=2.0, best=True)
    return stream.getvalue()


def test_an_epoch_is_one_plain_line() -> None:
    text = run(io.StringIO())
    assert text.count("\n") == 1
    for part in ("epoch 1/3", "loss 1.2500", "val_acc 0.7500 (best)", "0:00:04 left"):
        assert part in text


def test_a_slow_step_reports_in_between(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("trt_cls.training.logs.console.LINE_SECONDS", 0.0)
    assert "epoch 1/3  step 1/2  loss 1.5000  acc 0.2500" in run(io.StringIO())


def test_a_terminal_gets_a_bar() -> None:
    assert "1/3" in run(Terminal())
