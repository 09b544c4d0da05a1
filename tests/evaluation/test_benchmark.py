from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.tiny_models import RGB, SIZE, write_images, write_onnx
from trt_cls.cli import main
from trt_cls.data.folder import Sample, list_images
from trt_cls.engines import open_engine
from trt_cls.errors import DataError
from trt_cls.evaluation import benchmark as module
from trt_cls.evaluation import stages
from trt_cls.evaluation.benchmark import benchmark, share_of_slowest
from trt_cls.evaluation.stages import Stage
from trt_cls.preprocessing.packing import bytes_needed


def samples_in(folder: Path) -> list[Sample]:
    return [Sample(path) for path in list_images(write_images(folder / "images", 3, 40))]


def names(result: module.Benchmark) -> list[str]:
    return [stage.stage for stage in result.stages]


def test_the_cpu_shares_its_threads_among_decode_and_preprocess(tmp_path: Path) -> None:
    with closing(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu", 1)) as engine:
        result = benchmark(engine, samples_in(tmp_path), batch_size=4, workers=2, seconds=0)
    assert names(result) == ["decode", "preprocess", "decode+preprocess", "engine", "all"]
    assert [stage.stage for stage in result.stages if stage.limits] == ["decode+preprocess", "engine"]
    assert result.limit is not None
    assert result.share_of_limit > 0
    assert all(0 < stage.p50_ms <= stage.p99_ms for stage in result.stages)
    assert (result.backend, result.batch_size, result.workers, result.kernel) == ("onnxruntime-cpu", 4, 2, None)


@pytest.mark.parametrize(
    ("wanted", "expected"), [("decode", ["decode"]), ("preprocess", ["preprocess"]), ("engine", ["engine"])]
)
def test_one_stage_alone(tmp_path: Path, wanted: module.Wanted, expected: list[str]) -> None:
    with closing(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu", 1)) as engine:
        result = benchmark(engine, samples_in(tmp_path), batch_size=2, workers=0, wanted=wanted, seconds=0)
    assert names(result) == expected
    assert (result.limit, result.share_of_limit) == (None, None)


def test_the_share_is_taken_round_by_round() -> None:
    def nothing() -> int:
        return 0

    parts = [Stage(name, nothing, [], [], limits=name in "ab") for name in ("a", "b", "c", "all")]
    rounds = [
        {"a": 100.0, "b": 200.0, "c": 1.0, "all": 90.0},
        {"a": 50.0, "b": 40.0, "c": 1.0, "all": 38.0},
        {"a": 10.0, "b": 200.0, "c": 1.0, "all": 10.0},
    ]
    assert share_of_slowest(parts, rounds) == 0.95


@pytest.mark.parametrize(("costs", "runs"), [([0.5, 0.5], [1, 1]), ([0.04, 0.04], [8, 8]), ([0.5, 0.04], [1, 9])])
def test_each_figure_stays_within_its_seconds_whatever_a_batch_costs(
    costs: list[float], runs: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, ran, said = [0.0], [0] * len(costs), []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def work(index: int, batches: Any) -> int:
        clock[0] += costs[index] * len(batches)
        ran[index] += len(batches)
        return 4 * len(batches)

    names = ("decode+preprocess", "all")
    stages_ = [Stage(name, partial(work, index), range(8), range(1), limits=True) for index, name in enumerate(names)]
    monkeypatch.setattr(module, "host_stages", lambda *_: nullcontext(stages_))
    with closing(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu", 1)) as engine:
        found = benchmark(engine, samples_in(tmp_path), batch_size=4, workers=0, seconds=0.2, progress=said.append)
    for cost, stage, count in zip(costs, found.stages, ran, strict=True):
        assert stage.images_per_second == pytest.approx(4 / cost)
        assert cost * count <= max(cost, 2 * 0.2 + 2 * cost), "warm-up, throughput and latency"
    assert [min(count, most) for count, most in zip(ran, runs, strict=True)] == runs
    assert "all, first batch" in said


def test_nothing_that_can_be_decoded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_text("no picture")
    with (
        closing(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu", 1)) as engine,
        pytest.raises(DataError, match="none of 16 images can be decoded"),
    ):
        benchmark(engine, [Sample(tmp_path / "no.jpg")], batch_size=4, workers=1, seconds=0)


def test_pictures_are_made_of_the_size_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "GENERATED", 3)
    paths = stages.write_pictures(tmp_path)
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (500, 375))
        assert 30_000 < path.stat().st_size < 120_000


def test_the_floor_counts_what_the_crop_shows_once() -> None:
    output = 3 * SIZE * SIZE * 4
    assert bytes_needed([(40, 50)], RGB) == 40 * 50 * 3 + output
    assert bytes_needed([(40, 50)] * 2, RGB) == 2 * (40 * 50 * 3 + output)
    # 480×480 is reduced to 48×48, of which the middle 16 are shown: 10 source pixels each, and 5 on either side.
    assert bytes_needed([(480, 480)], replace(RGB, crop="center")) == 170 * 170 * 3 + output


def test_the_command_prints_a_table_and_writes_json_without_torch(tmp_path: Path) -> None:
    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 2, 30)
    arguments = ["benchmark", str(model), "--images", str(images), "-b", "2", "--seconds", "0", "-r", str(tmp_path)]
    code = (
        f"import sys\nfrom trt_cls.cli import main\nassert main({arguments!r}) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "decode+preprocess" in done.stdout
    assert "limit: " in done.stdout
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["images"] == f"6 images of {images}"
    assert {stage["stage"] for stage in written["stages"]} >= {"decode", "preprocess", "engine", "all"}
    assert written["limit"] in ("decode+preprocess", "engine")


def test_pictures_are_made_where_none_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "GENERATED", 4)
    model = write_onnx(tmp_path / "model.onnx")
    assert main(["benchmark", str(model), "-b", "1", "--seconds", "0", "--stage", "decode"]) == 0
    assert "4 generated JPEG pictures of 500×375" in " ".join(capsys.readouterr().out.split())


def test_images_may_lie_in_shards(tmp_path: Path) -> None:
    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 2, 30)
    assert main(["shards", str(images), "-o", str(tmp_path), "--unlabeled"]) == 0
    shard = str(tmp_path / "train-000000.tar")
    arguments = ["--images", shard, "-b", "2", "--seconds", "0", "--stage", "decode", "-r", str(tmp_path)]
    assert main(["benchmark", str(model), *arguments]) == 0
    assert json.loads((tmp_path / "benchmark.json").read_text())["images"] == f"6 images of {shard}"


def test_cuda_for_an_onnx_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 1)
    assert main(["benchmark", str(model), "--images", str(images), "--executor", "cuda", "--provider", "cpu"]) == 2
    assert "--executor cuda: the model runs on onnxruntime-cpu" in capsys.readouterr().err
