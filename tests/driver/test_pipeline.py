"""The pipeline on the GPU, over the stand-in driver: the same answers as on the host, and all memory given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from driver import stand_in
from driver.stand_in import Driver, in_each_thread, lazy, names
from support.tiny_models import COLORS, CONTRACT, RGB, SIZE, write_images
from trt_cls.artefacts.sidecar import BuilderName
from trt_cls.cli import main
from trt_cls.data.folder import Sample
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.errors import DeviceError, EngineError, TrtClsError
from trt_cls.evaluation.evaluate import Predictions, predict
from trt_cls.evaluation.inference import answers
from trt_cls.preprocessing.images import read

stand_in.require()
pytestmark = pytest.mark.driver
CROPPED = replace(CONTRACT, preprocessing=replace(RGB, crop="center", filter="bicubic", mean=(0.4, 0.5, 0.6)))
BROKEN = {0, 9, 10, 11, 12, 19}
SMALLEST, LARGEST = 2, 5


ROUNDING = 1e-6
"""The network's kernel adds up in another order than ONNX Runtime."""


def write_plan(folder: Path, builder: BuilderName = "tensorrt") -> Path:
    return stand_in.write_plan(folder, (SMALLEST, LARGEST), builder, CROPPED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noise")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """Noise of growing sizes, so that staging grows while batches are at work; some files are broken, one is thin."""
    random = np.random.default_rng(0)
    made = []
    for index in range(27):
        path = folder / f"{index:02}.png"
        shape = (20 + 3 * index, 20 + index, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
        if index in BROKEN:
            path.write_text("no picture")
        made.append(Sample(path, index % 3))
    Image.new("RGB", (1, 600_000)).save(folder / "thin.png")
    return [*made, Sample(folder / "thin.png", 0)]


@pytest.fixture(scope="module")
def on_host(folder: Path, samples: list[Sample]) -> tuple[Predictions, Predictions]:
    """What ONNX Runtime answers, and the engine to images that were prepared on the host."""
    plan = write_plan(folder)
    with closing(open_engine(folder / "model.onnx", "cpu", 1)) as engine:
        by_onnx_runtime = predict(engine, samples, batch_size=9, workers=0)
    with closing(TensorRtEngine(plan)) as engine:
        return by_onnx_runtime, predict(engine, samples, batch_size=9, workers=0, executor="cpu")


@pytest.mark.parametrize(("builder", "capturable"), [("tensorrt", True), ("tensorrt", False), ("tensorrt-rtx", True)])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (5, 3), (100, 2)])
def test_answers_are_those_of_the_pipeline_on_the_host(
    driver: Driver, samples: list[Sample], on_host: tuple[Predictions, Predictions], tmp_path: Path,
    builder: BuilderName, capturable: bool, batch_size: int, workers: int,
) -> None:  # fmt: skip
    driver.fail("cuStreamEndCapture", -1 if capturable else 0)
    names().ran.clear()
    with closing(TensorRtEngine(write_plan(tmp_path, builder))) as engine:
        found = predict(engine, samples, batch_size=batch_size, workers=workers, executor="cuda")
    expected, by_engine = on_host
    assert found.samples == expected.samples
    assert found.skipped == expected.skipped
    assert len(found.skipped) == len(BROKEN) + 1
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=ROUNDING)
    np.testing.assert_array_equal(found.probabilities.view(np.uint32), by_engine.probabilities.view(np.uint32))
    assert max(names().ran) <= LARGEST
    assert min(names().ran) >= SMALLEST


@pytest.mark.parametrize("count", [1, 5, 17])
def test_infer_answers_batches_over_and_below_the_profile(driver: Driver, tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(0).random((count, 3, SIZE, SIZE), np.float32)
    with (
        closing(TensorRtEngine(write_plan(tmp_path))) as engine,
        closing(open_engine(tmp_path / "model.onnx", "cpu", 1)) as reference,
    ):
        for _ in range(3):
            np.testing.assert_allclose(engine.infer(images), reference.infer(images), atol=ROUNDING)


def colored(folder: Path, count: int) -> list[Sample]:
    made = []
    for index in range(count):
        color = list(COLORS.values())[index % 3]
        Image.new("RGB", (30 + index, 40), color).save(folder / f"{index}.png")
        made.append(Sample(folder / f"{index}.png", index % 3))
    return made


@pytest.mark.parametrize(
    ("builder", "graphs", "launched"),
    # 10 batches of 4 alternate between two slots: the first run in each is plain, in the second the graph is made.
    [("tensorrt", True, 10 - 4), ("tensorrt", False, 0), ("tensorrt-rtx", True, 0)],
)
def test_a_repeated_shape_becomes_a_graph_unless_tensorrt_does_that_itself(
    driver: Driver, tmp_path: Path, builder: BuilderName, graphs: bool, launched: int
) -> None:
    samples, before = colored(tmp_path, 40), driver.count("graph_launches")
    with closing(TensorRtEngine(write_plan(tmp_path, builder), graphs=graphs)) as engine:
        found = predict(engine, samples, batch_size=4, workers=2)
    assert found.probabilities.argmax(1).tolist() == [sample.label for sample in samples]
    assert driver.count("graph_launches") - before == launched


def test_a_batch_may_be_larger_than_what_one_launch_takes(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_cls.preprocessing.cuda.MOST_IMAGES", 2)
    samples = colored(tmp_path, 10)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        found = predict(engine, samples, batch_size=LARGEST, workers=2, executor="cuda")
    assert found.probabilities.argmax(1).tolist() == [sample.label for sample in samples]


@lazy
def test_two_batches_are_in_flight_at_once(driver: Driver, tmp_path: Path) -> None:
    samples = colored(tmp_path, 12)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        before = driver.count("queued")
        batches = answers(engine, samples, batch_size=3, workers=2)
        next(batches)
        assert driver.count("queued") - before == 2
        batches.close()


def fail_run(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names(), "fail_after", 3)


def fail_decoding(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, channels: int) -> np.ndarray:
        if path.name == "13.png":
            raise ZeroDivisionError("no fault of the image")
        return read(path, channels)

    monkeypatch.setattr("trt_cls.data.stream.read", failing)


@in_each_thread
@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda driver, monkeypatch: driver.fail("allocation", 3), EngineError, "out of memory"),
        (lambda driver, monkeypatch: driver.fail("cuStreamCreate", 1), EngineError, "CUDA failed"),
        (lambda driver, monkeypatch: driver.fail("cuMemcpyHtoDAsync_v2", 5), EngineError, "CUDA failed"),
        (fail_run, EngineError, "a batch failed: the run failed"),
        (fail_decoding, ZeroDivisionError, "no fault"),
    ],
)
def test_whatever_fails_on_the_way_all_memory_is_given_back(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Driver, pytest.MonkeyPatch], None], error: type[Exception], message: str,
    where: Callable[[Callable[[], None]], None],
) -> None:  # fmt: skip
    samples = colored(tmp_path, 40)
    with closing(TensorRtEngine(write_plan(tmp_path), graphs=False)) as engine:
        break_it(driver, monkeypatch)

        def fail() -> None:
            with pytest.raises(error, match=message):
                predict(engine, samples, batch_size=4, workers=2)

        where(fail)


@pytest.mark.parametrize("allocation", range(40))
def test_an_allocation_that_fails_is_one_error_and_leaves_nothing(
    driver: Driver, tmp_path: Path, samples: list[Sample], allocation: int
) -> None:
    plan, before, errors = write_plan(tmp_path), driver.count("refused"), []
    driver.fail("allocation", allocation)
    try:
        with closing(TensorRtEngine(plan)) as engine:
            predict(engine, samples, batch_size=1, workers=1, executor="cuda")
    except TrtClsError as error:
        errors.append(str(error))
    assert len(errors) == (driver.count("refused") > before)  # pycuda tries a second time
    assert all("out of memory" in error for error in errors)
    driver.repair()
    driver.assert_all_freed()
    with closing(TensorRtEngine(plan)) as engine:
        assert engine.infer(np.zeros((1, 3, SIZE, SIZE), np.float32)).shape == (1, 3)


def no_compiler(architecture: str, folder: Path) -> Path:
    raise DeviceError("no nvcc")


def test_auto_falls_back_to_the_cpu_with_a_line_and_cuda_does_not(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trt_cls.preprocessing.cuda.compiled_kernels", no_compiler)
    samples = colored(tmp_path, 7)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        found = predict(engine, samples, batch_size=4, workers=2)
        assert found.probabilities.argmax(1).tolist() == [sample.label for sample in samples]
        assert caplog.messages == ["images are prepared on the CPU, with the same result: no nvcc"]
        with pytest.raises(DeviceError, match="no nvcc"):
            predict(engine, samples, batch_size=4, workers=2, executor="cuda")
        predict(engine, samples, batch_size=4, workers=2, executor="cpu")
    assert len(caplog.messages) == 1


def test_infer_and_evaluate_take_the_pipeline(
    driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, images = write_plan(tmp_path), tmp_path / "images"
    images.mkdir()
    colored(images, 7)
    spec = tmp_path / "spec.txt"
    spec.write_text(
        f'model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{SIZE},{SIZE}" }}\neval_config {{ }}'
    )
    write_images(tmp_path / "labeled", 3)
    names().ran.clear()
    assert main(["infer", "-m", str(plan), "-i", str(images), "-b", "3", "--executor", "cuda", "-r", str(images)]) == 0
    assert [line.split(",")[1] for line in (images / "result.csv").read_text().splitlines()] == [
        list(COLORS)[index % 3] for index in range(7)
    ]
    arguments = ["-e", str(spec), "-m", str(plan), "--dataset", str(tmp_path / "labeled"), "--top-k", "1"]
    assert main(["evaluate", *arguments, "--set", 'eval_config.eval_dataset_path="/nowhere"']) == 0
    assert "top-1 accuracy     1.0000" in capsys.readouterr().out
    # 7 images by 3, the last one in a batch of the smallest size; 9 in batches as large as the profile takes
    assert names().ran == [3, 3, 2, 5, 4]
    assert main(["infer", "-m", str(tmp_path / "model.onnx"), "-i", str(images), "--executor", "cuda"]) == 2
