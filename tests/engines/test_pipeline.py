"""The pipeline on the GPU, played by the CPU: the same answers as on the host, and all memory given back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import StandIn
from PIL import Image
from tiny_models import COLORS, CONTRACT, RGB, SIZE, write_images, write_onnx

from trt_cls.artefacts.sidecar import Builder, Profile, Sidecar, write_sidecar
from trt_cls.cli import main
from trt_cls.data.folder import Sample
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.errors import DeviceError, EngineError, RequestError
from trt_cls.evaluation.answers import answers
from trt_cls.evaluation.evaluate import predict
from trt_cls.preprocessing.images import read

CROPPED = replace(CONTRACT, preprocessing=replace(RGB, crop="center", filter="bicubic", mean=(0.4, 0.5, 0.6)))
BROKEN = {0, 9, 10, 11, 12, 19}
SMALLEST, LARGEST = 2, 5


def write_plan(folder: Path, builder: Builder = "tensorrt", smallest: int = SMALLEST, largest: int = LARGEST) -> Path:
    """An ONNX file in the place of a plan, as the stand-in takes it."""
    onnx = write_onnx(folder / "model.onnx", CROPPED)
    plan = folder / "model.engine"
    plan.write_bytes(onnx.read_bytes())
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    profile = Profile(smallest, smallest, largest)
    write_sidecar(plan, Sidecar(CROPPED, digest, builder, "10.9", ("8.0",), "", profile, "model.onnx", digest))
    return plan


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn((SMALLEST, LARGEST))
    stand_in.install(monkeypatch)
    return stand_in


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Noise of growing sizes, so that staging grows while batches are at work; some files are broken, one is thin."""
    random = np.random.default_rng(0)
    made = []
    for index in range(27):
        path = tmp_path / f"{index:02}.png"
        shape = (20 + 3 * index, 20 + index, 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
        if index in BROKEN:
            path.write_text("no picture")
        made.append(Sample(path, index % 3))
    Image.new("RGB", (1, 600_000)).save(tmp_path / "thin.png")
    return [*made, Sample(tmp_path / "thin.png", 0)]


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (4, 1), (5, 3), (100, 2)])
def test_answers_are_those_of_the_pipeline_on_the_host(
    gpu: StandIn, samples: list[Sample], tmp_path: Path,
    builder: Builder, capturable: bool, batch_size: int, workers: int,
) -> None:  # fmt: skip
    gpu.capturable = capturable
    plan = write_plan(tmp_path, builder)
    with closing(open_engine(tmp_path / "model.onnx", "cpu", 1)) as reference:
        expected = predict(reference, samples, batch_size=batch_size, workers=workers)
    with closing(TensorRtEngine(plan)) as engine:
        found = predict(engine, samples, batch_size=batch_size, workers=workers, executor="cuda")
        assert found.samples == expected.samples
        assert found.skipped == expected.skipped
        assert len(found.skipped) == len(BROKEN) + 1
        np.testing.assert_array_equal(found.probabilities.view(np.uint32), expected.probabilities.view(np.uint32))
        assert max(gpu.batches) <= LARGEST
        assert min(gpu.batches) >= SMALLEST
    gpu.assert_all_freed()


@pytest.mark.parametrize("count", [1, 2, 5, 6, 17])
def test_infer_answers_batches_over_and_below_the_profile(gpu: StandIn, tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(0).random((count, 3, SIZE, SIZE), np.float32)
    with (
        closing(TensorRtEngine(write_plan(tmp_path))) as engine,
        closing(open_engine(tmp_path / "model.onnx", "cpu", 1)) as reference,
    ):
        for _ in range(3):
            np.testing.assert_array_equal(engine.infer(images), reference.infer(images))
    gpu.assert_all_freed()


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
    gpu: StandIn, tmp_path: Path, builder: Builder, graphs: bool, launched: int
) -> None:
    samples = colored(tmp_path, 40)
    with closing(TensorRtEngine(write_plan(tmp_path, builder), graphs=graphs)) as engine:
        found = predict(engine, samples, batch_size=4, workers=2)
    assert found.probabilities.argmax(1).tolist() == [sample.label for sample in samples]
    assert gpu.launched_graphs == launched
    gpu.assert_all_freed()


def test_two_batches_are_in_flight_at_once(gpu: StandIn, tmp_path: Path) -> None:
    samples = colored(tmp_path, 12)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        batches = answers(engine, samples, batch_size=3, workers=2)
        next(batches)
        assert sum(bool(stream.queue) for stream in gpu.streams.values()) == 2
        batches.close()
    gpu.assert_all_freed()


def fail_decoding(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, channels: int) -> np.ndarray:
        if path.name == "13.png":
            raise ZeroDivisionError("no fault of the image")
        return read(path, channels)

    monkeypatch.setattr("trt_cls.data.stream.read", failing)


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda gpu, monkeypatch: setattr(gpu, "fail_allocation_after", 3), EngineError, "out of memory"),
        (lambda gpu, monkeypatch: setattr(gpu, "fail_allocation_after", 9), EngineError, "out of memory"),
        (lambda gpu, monkeypatch: setattr(gpu, "fail_run_after", 3), EngineError, "a batch failed: the run failed"),
        (fail_decoding, ZeroDivisionError, "no fault"),
    ],
)
def test_whatever_fails_on_the_way_all_memory_is_given_back(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[StandIn, pytest.MonkeyPatch], None], error: type[Exception], message: str,
) -> None:  # fmt: skip
    samples = colored(tmp_path, 40)
    with closing(TensorRtEngine(write_plan(tmp_path), graphs=False)) as engine:
        break_it(gpu, monkeypatch)
        with pytest.raises(error, match=message):
            predict(engine, samples, batch_size=4, workers=2)
    gpu.assert_all_freed()


def test_an_engine_that_does_not_open_leaves_nothing(gpu: StandIn, tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    gpu.fail_allocation_after = 2
    with pytest.raises(EngineError, match="out of memory"):
        TensorRtEngine(plan)
    gpu.assert_all_freed()


def no_compiler(architecture: str, folder: Path) -> Path:
    raise DeviceError("no nvcc")


def test_auto_falls_back_to_the_cpu_with_a_line_and_cuda_does_not(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trt_cls.preprocessing.cuda.compiled", no_compiler)
    samples = colored(tmp_path, 7)
    with closing(TensorRtEngine(write_plan(tmp_path))) as engine:
        found = predict(engine, samples, batch_size=4, workers=2)
        assert found.probabilities.argmax(1).tolist() == [sample.label for sample in samples]
        assert caplog.messages == ["images are prepared on the CPU, with the same result: no nvcc"]
        with pytest.raises(DeviceError, match="no nvcc"):
            predict(engine, samples, batch_size=4, workers=2, executor="cuda")
        predict(engine, samples, batch_size=4, workers=2, executor="cpu")
    assert len(caplog.messages) == 1
    gpu.assert_all_freed()


def test_an_engine_that_takes_its_input_from_the_cpu_refuses_cuda(tmp_path: Path) -> None:
    samples = colored(tmp_path, 2)
    with (
        closing(open_engine(write_onnx(tmp_path / "model.onnx"), "cpu")) as engine,
        pytest.raises(RequestError, match=r"--executor cuda: the model runs on onnxruntime-cpu.*--executor cpu"),
    ):
        predict(engine, samples, batch_size=4, workers=2, executor="cuda")


def test_infer_and_evaluate_take_the_pipeline(gpu: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, images = write_plan(tmp_path), tmp_path / "images"
    images.mkdir()
    colored(images, 7)
    spec = tmp_path / "spec.txt"
    spec.write_text(
        f'model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{SIZE},{SIZE}" }}\neval_config {{ }}'
    )
    write_images(tmp_path / "labelled", 3)
    assert main(["infer", "-m", str(plan), "-i", str(images), "-b", "3", "--executor", "cuda"]) == 0
    assert [line.split(",")[1] for line in (images / "result.csv").read_text().splitlines()] == [
        list(COLORS)[index % 3] for index in range(7)
    ]
    arguments = ["-e", str(spec), "-m", str(plan), "--dataset", str(tmp_path / "labelled"), "--top-k", "1"]
    assert main(["evaluate", *arguments, "--set", 'eval_config.eval_dataset_path="/nowhere"']) == 0
    assert "top-1 accuracy     1.0000" in capsys.readouterr().out
    # 7 images by 3, the last one in a batch of the smallest size; 9 in batches as large as the profile takes
    assert gpu.batches == [3, 3, 2, 5, 4]
    assert main(["infer", "-m", str(tmp_path / "model.onnx"), "-i", str(images), "--executor", "cuda"]) == 2
    gpu.assert_all_freed()
