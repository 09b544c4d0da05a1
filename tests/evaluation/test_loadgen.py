"""LoadGen's scenarios: what is refused without it, what queries answer, and what the generator says of a run."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import write_images, write_onnx
from trt_cls.cli import main
from trt_cls.data.folder import Sample, list_images
from trt_cls.engines import open_engine
from trt_cls.errors import DataError, EngineError
from trt_cls.evaluation.loadgen import SCENARIOS, Load, Queries, drive, opened_queries


class Recorded:
    """An engine that remembers its batches."""

    def __init__(self, engine: Any) -> None:
        self.contract, self.backend, self._engine = engine.contract, engine.backend, engine
        self.batches: list[Any] = []

    def infer(self, images: Any) -> Any:
        self.batches.append(images.copy())
        return self._engine.infer(images)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    with closing(Recorded(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu", 1))) as opened:
        yield opened


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [Sample(path) for path in list_images(write_images(tmp_path / "images", 2))]


def queries(engine: Any, samples: list[Sample], *, tensors: bool) -> Any:
    return opened_queries(engine, samples, tensors=tensors, batch_size=4, workers=1, executor="cpu")


@pytest.mark.parametrize("tensors", [True, False])
def test_queries_answer_the_images_that_are_asked_for_in_batches(
    engine: Any, samples: list[Sample], tensors: bool
) -> None:
    with queries(engine, samples, tensors=tensors) as asked:
        assert list(asked.run([5, 0, 0, 3, 1])) == [4, 1]
    shown = np.concatenate(engine.batches)[:, :, 0, 0].argmax(1)  # the images are blue, green, red; two of each
    assert shown.tolist() == [0, 2, 2, 1, 2]


def test_images_that_can_not_be_decoded_are_not_asked_for(engine: Any, samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    broken = Sample(tmp_path / "broken.png")
    with queries(engine, [broken, *samples], tensors=False) as asked:
        assert list(asked.samples) == samples
        samples[2].path.write_text("broken since")
        with pytest.raises(DataError, match="expected files that stay"):
            list(asked.run([1, 2]))
    with pytest.raises(DataError, match="none of 1 images can be decoded"), queries(engine, [broken], tensors=True):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scenario", "server"], "expected --target-qps RATE"),
        (["--scenario", "single-stream", "--target-qps", "9"], "--target-qps with --scenario single-stream; expected"),
        (["--scenario", "offline", "--target-latency", "9"], "--target-latency with --scenario offline; expected"),
        (["--target-qps", "9"], "--target-qps with no --scenario; expected"),
        (["--scenario", "offline", "--stage", "decode"], "expected --stage all, from image files, or engine"),
    ],
)
def test_what_no_scenario_can_do_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["benchmark", str(write_onnx(tmp_path / "model.onnx")), *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_without_loadgen_its_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    assert main(["benchmark", str(write_onnx(tmp_path / "model.onnx")), "--scenario", "offline"]) == 1
    expected = 'benchmark --scenario needs the package mlcommons-loadgen, which is not installed: pip install "trt-cls['
    assert expected in capsys.readouterr().err


def judged(asked: Queries, folder: Path, **load: Any) -> Any:
    pytest.importorskip("mlperf_loadgen")
    logs = folder / "logs"
    logs.mkdir()
    return drive(asked.run, len(asked.samples), asked.batch_size, Load(**load), logs)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_is_judged_by_loadgen_under_the_settings_that_are_named(
    scenario: Any, engine: Any, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("audit.config").write_text("*.*.min_query_count = 1\n*.*.sample_index_rng_seed = 77\n")
    here = sorted(path.name for path in tmp_path.iterdir())
    rate = {"server": 4000.0, "offline": 2000.0}.get(scenario)
    with queries(engine, samples, tensors=True) as asked:
        found = judged(asked, tmp_path, scenario=scenario, seconds=0.1, target_qps=rate)
    summary = (tmp_path / "logs" / "mlperf_log_summary.txt").read_text()
    assert f"Result is : {'VALID' if found.valid else 'INVALID'}\n" in summary
    assert bool(found.reason) != found.valid
    for name in ("p50", "p99"):
        assert f"{name[1:]}.00 percentile latency (ns)   : {found.percentiles_ms[name] * 1e6:.0f}\n" in summary
    assert found.settings["sample_index_rng_seed"] == 0, "audit.config of the current folder was read"
    sent = found.queries * found.settings["samples_per_query"]
    assert sum(map(len, engine.batches)) >= sent
    assert max(map(len, engine.batches)) <= 4
    assert found.queries >= {"multi-stream": 662, "server": 662, "offline": 1}.get(scenario, 100)
    assert found.images_per_second > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*here, "logs"])


def test_an_engine_that_fails_ends_the_run_at_once(
    engine: Any, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving: list[Any] = []
    monkeypatch.setattr("trt_cls.evaluation.loadgen.atexit.register", lambda *call: leaving.append(call))

    def fail(images: Any) -> Any:
        raise EngineError("out of order")

    with queries(engine, samples, tensors=True) as asked:
        whole = asked.run
        calls = 0

        def run(indices: Any) -> Any:
            nonlocal calls
            calls += 1
            return fail(indices) if calls > 20 else whole(indices)

        object.__setattr__(asked, "run", run)
        start = time.monotonic()
        with pytest.raises(EngineError, match="out of order"):
            judged(asked, tmp_path, scenario="server", seconds=3.0, target_qps=500.0)
        assert time.monotonic() - start < 2.5
    assert [call[1] for call in leaving] == [1], "LoadGen's thread must not meet an interpreter that shuts down"
    for thread in threading.enumerate():
        if thread.name == "trt-cls-loadgen":
            thread.join()


def test_the_command_says_that_it_is_no_mlperf_result_and_keeps_the_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlperf_loadgen")
    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 1)
    flags = ["--scenario", "single-stream", "--seconds", "0.1", "--images", str(images), "-r", str(tmp_path / "r")]
    assert main(["benchmark", str(model), "--provider", "cpu", *flags]) == 0
    printed = capsys.readouterr().out
    assert "VALID (not an MLPerf result)" in printed
    assert "settings   at least 0.1 s and 100 queries of 1, enough to know 90 % of latencies" in printed
    written = json.loads((tmp_path / "r" / "benchmark_single-stream.json").read_text())
    assert (written["valid"], written["label"]) == (True, "not an MLPerf result")
    assert (tmp_path / "r" / "loadgen" / "single-stream" / "mlperf_log_detail.txt").exists()
