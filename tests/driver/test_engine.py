"""An engine over the stand-in driver: what is refused, what fails, graphs, and what is left of it in other threads."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from driver import stand_in
from driver.stand_in import CAPABILITY, VERSION, Driver, elsewhere, in_each_thread, names
from support.tiny_models import CONTRACT, RGB, SIZE
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine, capture
from trt_cls.errors import ArtefactError, EngineError
from trt_cls.preprocessing.pillow import Floats

stand_in.require()
pytestmark = pytest.mark.driver
ROUNDING = 1e-6


def write_plan(folder: Path, **given: Any) -> Path:
    return stand_in.write_plan(folder, (2, 5), **given)


def some(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, 3, SIZE, SIZE), np.float32)


def test_a_plan_for_another_gpu_is_refused_before_it_is_loaded(driver: Driver, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, content=b"not loaded", capability="8.9")
    expected = (
        rf"by tensorrt {VERSION} for compute capability 8\.9, here is tensorrt {VERSION}, .*, compute capability "
        rf"{CAPABILITY} \(it holds no code for this GPU\); .*: trt-cls export -m "
    )
    with pytest.raises(ArtefactError, match=expected):
        TensorRtEngine(plan)


def test_the_reason_that_tensorrt_gives_for_a_plan_is_in_the_error(driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\(it is not a plan: .*\); .*: trt-cls export -m "):
        TensorRtEngine(write_plan(tmp_path, content=b"not a plan"))


def test_a_plan_whose_tensors_are_not_its_contracts_is_refused(driver: Driver, tmp_path: Path) -> None:
    gray = write_plan(tmp_path).read_bytes().replace(b"3, 16, 16", b"1, 16, 16")
    with pytest.raises(ArtefactError, match=r"its inputs are \{'input_1': \[1, 16, 16\]\}"):
        TensorRtEngine(write_plan(tmp_path, content=gray))


def test_a_run_that_fails_says_why(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        monkeypatch.setattr(names(), "fail_after", 0)
        with pytest.raises(EngineError, match="tensorrt: running a batch failed: the run failed"):
            engine.infer(some(3))


def test_a_graph_that_does_not_launch_is_an_error(driver: Driver, tmp_path: Path) -> None:
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        engine.infer(some(3))
        engine.infer(some(3))
        driver.fail("cuGraphLaunch")
        with pytest.raises(EngineError, match="CUDA error 999"):
            engine.infer(some(3))


def test_graphs_follow_the_size_of_the_batch(driver: Driver, tmp_path: Path) -> None:
    before = driver.count("graph_launches")
    with (
        closing(TensorRtEngine(write_plan(tmp_path))) as engine,
        closing(open_engine(tmp_path / "model.onnx", "cpu", 1)) as reference,
    ):
        for turn, count in enumerate((3, 3, 3, 4, 4, 4, 3, 3, 3, 5, 3, 3)):
            images = some(count, turn)
            np.testing.assert_allclose(engine.infer(images), reference.infer(images), atol=ROUNDING)
    assert driver.count("graph_launches") - before == 3


@pytest.mark.parametrize("call", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_where_capturing_fails_runs_go_on_without(driver: Driver, tmp_path: Path, call: str) -> None:
    before = driver.count("graph_launches")
    driver.fail(call)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        first, *rest = [engine.infer(some(3)) for _ in range(4)]
    assert all(np.array_equal(first, answers) for answers in rest)
    assert driver.count("graph_launches") == before


def test_a_layer_that_can_not_be_captured_ends_the_capture(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = driver.count("graph_launches")
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        first = engine.infer(some(3))
        monkeypatch.setattr(names(), "fail_after", 1)  # the run goes well, and then its capture fails
        np.testing.assert_array_equal(first, engine.infer(some(3)))
        monkeypatch.setattr(names(), "fail_after", -1)
        np.testing.assert_array_equal(first, engine.infer(some(3)))
    assert driver.count("graph_launches") == before


def test_an_engine_serves_any_thread(driver: Driver, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    with closing(elsewhere(lambda: open_engine(plan))) as engine:
        np.testing.assert_array_equal(engine.infer(some(5)), elsewhere(lambda: engine.infer(some(5))))


def test_an_engine_that_is_closed_in_another_thread_leaves_nothing(driver: Driver, tmp_path: Path) -> None:
    engine = open_engine(write_plan(tmp_path))
    engine.infer(some(5))
    elsewhere(engine.close)


def test_several_engines_in_several_threads_do_not_disturb_each_other(driver: Driver, tmp_path: Path) -> None:
    plan, answers = write_plan(tmp_path), []

    def work() -> None:
        with closing(open_engine(plan)) as engine:
            answers.extend(engine.infer(some(4)) for _ in range(8))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 * 8
    assert all(np.array_equal(answers[0], other) for other in answers)


def test_an_engine_opens_while_another_captures(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, opened = write_plan(tmp_path), []

    def capturing(library: Any, stream: int, enqueue: Callable[[int], None]) -> Any:
        def meanwhile(handle: int) -> None:
            enqueue(handle)
            opened.append(elsewhere(lambda: open_engine(plan)))

        return capture(library, stream, meanwhile)

    monkeypatch.setattr("trt_cls.engines.tensorrt.engine.capture", capturing)
    with closing(open_engine(plan)) as engine:
        first, *rest = [engine.infer(some(3)) for _ in range(4)]
    assert all(np.array_equal(first, answers) for answers in rest)
    (other,) = opened
    other.close()


@in_each_thread
@pytest.mark.parametrize(("call", "after"), [("cuStreamCreate", 0), *[("allocation", after) for after in range(4)]])
def test_an_engine_that_does_not_open_leaves_nothing(
    driver: Driver, tmp_path: Path, where: Callable[[Callable[[], Any]], Any], call: str, after: int,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = write_plan(tmp_path)
    driver.fail(call, after)

    def fail() -> None:
        with pytest.raises(EngineError, match="CUDA failed"):
            open_engine(plan)

    where(fail)
    driver.assert_all_freed()
    assert capfd.readouterr().err == ""


@in_each_thread
def test_an_engine_that_was_forgotten_gives_everything_back(
    driver: Driver, tmp_path: Path, where: Callable[[Callable[[], Any]], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    kept = [open_engine(write_plan(tmp_path))]
    kept[0].infer(some(5))
    where(lambda: (kept.clear(), gc.collect()))
    driver.assert_all_freed()
    assert capfd.readouterr().err == ""


def test_a_closed_engine_says_so_and_closes_twice(driver: Driver, tmp_path: Path) -> None:
    engine = open_engine(write_plan(tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; open it again"):
        engine.infer(some(1))


def test_an_engine_for_other_pixels_than_rgb_runs_too(driver: Driver, tmp_path: Path) -> None:
    contract = replace(CONTRACT, preprocessing=replace(RGB, channel_order="bgr"))
    with closing(TensorRtEngine(write_plan(tmp_path, contract=contract))) as engine:
        assert engine.infer(some(2)).shape == (2, 3)
