"""Training as INT8 computes: what is validated and saved, how it is resumed, and what its file answers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.forked import Forked
from trt_cls import spec
from trt_cls.artefacts.model_file import read_contract
from trt_cls.data.folder import image_folder
from trt_cls.data.stream import stream
from trt_cls.errors import DataError, RequestError
from trt_cls.export.export import export
from trt_cls.models.checkpoint import Checkpoint, load_checkpoint
from trt_cls.models.int8_layers import measured_ranges, quantize_layers, restore_layers, trained_ranges
from trt_cls.models.int8_ranges import METHODS, threshold
from trt_cls.spec.experiment import Experiment, Extensions, Quantization
from trt_cls.training import quantization
from trt_cls.training.loop import TrainingResult
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted

Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> Path:
    return train(experiment(), tmp_path_factory.mktemp("pretrained"), device="cpu", reporter=quiet()).last


@pytest.fixture(scope="module")
def asked(pretrained: Path, experiment: Make) -> Make:
    def make(quantization: Quantization = Quantization(), **given: Any) -> Experiment:
        extensions = Extensions(quantization=quantization)
        return experiment(**{"extensions": extensions, "pretrained_model_path": str(pretrained), **given})

    return make


@pytest.fixture(scope="module")
def reporter(quiet: Any) -> Any:
    return quiet()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, asked: Make, reporter: Any) -> TrainingResult:
    return train(asked(), tmp_path_factory.mktemp("quantized"), device="cpu", reporter=reporter)


def cross_entropy(module: nn.Module, folder: Path, checkpoint: Checkpoint) -> float:
    (batch,) = stream(image_folder(folder).samples, checkpoint.contract.preprocessing, batch_size=99, workers=0)
    labels = torch.tensor([sample.label for sample in batch.samples])
    with torch.no_grad():
        return functional.cross_entropy(module(torch.from_numpy(batch.images)), labels).item()


def test_what_is_validated_and_saved_computes_in_int8(done: TrainingResult, images: Path) -> None:
    checkpoint = load_checkpoint(done.last)
    assert checkpoint.contract.precision == "int8"
    found = done.rows[-1].val_loss
    assert cross_entropy(checkpoint.module, images / "val", checkpoint) == pytest.approx(found, rel=1e-5)
    restore_layers(checkpoint.module)
    assert cross_entropy(checkpoint.module, images / "val", checkpoint) != pytest.approx(found, rel=1e-4)


def test_ranges_are_the_best_of_those_of_the_pretrained_network_on_the_training_images(
    done: TrainingResult, reporter: Any, pretrained: Path, images: Path
) -> None:
    before = load_checkpoint(pretrained)
    samples = image_folder(images / "train").samples
    batches = [
        torch.from_numpy(batch.images)
        for batch in stream(samples, before.contract.preprocessing, batch_size=16, workers=0)
    ]
    found = measured_ranges(before.module, batches)
    (line,) = (line for line in reporter.lines if "calibrated" in line)
    start = "18 layers compute in INT8, calibrated on 21 of 21 training images ("
    assert line.startswith(start)
    best = line.removeprefix(start).split(";")[0]
    expected = {name: tuple(threshold(part, best) for part in parts) for name, parts in found.items()}  # type: ignore
    ranges = trained_ranges(load_checkpoint(done.last).module)
    assert ranges.keys() == expected.keys()
    for name, parts in ranges.items():
        assert parts == pytest.approx(expected[name], rel=2**-11), name  # float16 keeps them
    assert ranges["add_1"][0] != ranges["add_1"][1]
    with torch.no_grad():
        exact = before.module(torch.cat(batches))
        noise = {}
        for method in METHODS:
            quantize_layers(before.module, {n: [threshold(p, method) for p in parts] for n, parts in found.items()})
            off = before.module(torch.cat(batches)) - exact
            noise[method] = float((off - off.mean(dim=1, keepdim=True)).square().mean())
            restore_layers(before.module)
    tie = 10**0.011  # a tenth of a decibel, and what float32 rounds
    assert noise[best] < tie * min(noise.values())  # type: ignore[index]
    assert min(noise.values()) < max(noise.values())


def test_it_says_how_many_layers_and_images(done: TrainingResult, asked: Make, quiet: Any, tmp_path: Path) -> None:
    reporter = quiet()
    train(
        asked(Quantization(calibration_method="percentile", calibration_batches=1, keep=("last",)), n_epochs=1),
        tmp_path,
        device="cpu",
        reporter=reporter,
    )
    assert "17 layers compute in INT8, calibrated on 16 of 21 training images (percentile)" in reporter.lines
    ranges, all_ranges = (
        trained_ranges(load_checkpoint(path).module) for path in (tmp_path / "weights/best.safetensors", done.last)
    )
    assert all_ranges.keys() - ranges.keys() == {"predictions"}


def test_a_resumed_training_measures_nothing_anew(
    asked: Make, done: TrainingResult, quiet: Any, tmp_path: Path
) -> None:
    stop = quiet(2, 1, partial(signal.raise_signal, signal.SIGTERM))
    with pytest.raises(Interrupted, match="epoch 2, step 1 of 3"):
        train(asked(), tmp_path, device="cpu", reporter=stop)
    reporter = quiet()
    train(asked(), tmp_path, device="cpu", reporter=reporter, resume=True)
    assert not any("calibrated" in line for line in reporter.lines)
    for name in ("training.csv", "weights/resnet_001.safetensors", "weights/resnet_002.safetensors"):
        assert (tmp_path / name).read_bytes() == (done.results.root / name).read_bytes(), name


def test_it_may_start_from_another_training_in_int8(
    done: TrainingResult, asked: Make, quiet: Any, tmp_path: Path
) -> None:
    reporter = quiet()
    request = asked(pretrained_model_path=str(done.last), n_epochs=1)
    train(request, tmp_path, device="cpu", reporter=reporter)
    assert reporter.lines[0].endswith(": 67 of 67 tensors taken")


def test_images_that_can_not_be_decoded_are_no_calibration(
    asked: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    for path in (images / "train").rglob("*.png"):
        copy = tmp_path / "train" / path.relative_to(images / "train")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[:40])
    request = asked(train_dataset_path=str(tmp_path / "train"))
    with pytest.raises(DataError, match="none of 21 images to measure INT8's ranges on can be decoded"):
        train(request, tmp_path / "run", device="cpu", reporter=quiet())


def test_the_file_answers_as_what_was_trained(done: TrainingResult, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = export(done.last, tmp_path / "model.onnx", images=images / "val", builder="none")
    assert result.precision == read_contract(result.onnx).precision == "int8"
    assert result.parity is not None
    assert result.parity.top1_agreement == 1.0


def test_a_network_without_a_layer_for_int8_is_refused(
    asked: Make, monkeypatch: pytest.MonkeyPatch, quiet: Any, tmp_path: Path
) -> None:
    # as of a transformer whose patches and classes are kept: its other layers see several vectors an image
    monkeypatch.setattr(quantization, "measured_ranges", lambda *_: dict.fromkeys(["conv1", "predictions"], ()))
    request = asked(Quantization(keep=("first", "last")))
    with pytest.raises(RequestError, match="none of the 2 layers that INT8 can compute is left"):
        train(request, tmp_path, device="cpu", reporter=quiet())


EXTENDED = {
    "mean": Extensions(quantization=Quantization(), ema_decay=0.9),
    "average": Extensions(quantization=Quantization(), average_checkpoints=2),
    "stages": Extensions(quantization=Quantization(), microbatches=2),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_other_extensions_keep_the_ranges(
    name: str, asked: Make, done: TrainingResult, quiet: Any, tmp_path: Path
) -> None:
    shares = (0.5, 0.5) if name == "stages" else ()
    request = asked(extensions=EXTENDED[name], model_parallelism=shares)
    result = train(request, tmp_path, device="cpu", reporter=quiet())
    written = result.averaged.path if result.averaged else result.last
    expected = trained_ranges(load_checkpoint(done.last).module)
    assert trained_ranges(load_checkpoint(written).module) == expected


@pytest.mark.slow
def test_two_processes_learn_with_the_ranges_of_one(
    experiment: Make, quiet: Any, forked: Forked, tmp_path: Path
) -> None:
    first = train(experiment(n_epochs=1), tmp_path / "first", device="cpu", reporter=quiet()).last
    given: Any = {"extensions": Extensions(quantization=Quantization()), "pretrained_model_path": str(first)}
    one = train(experiment(**given), tmp_path / "one", device="cpu", reporter=quiet())
    (tmp_path / "spec.txt").write_text(spec.show(experiment(**given, batch_size_per_gpu=4)))
    arguments = ["train", "-e", tmp_path / "spec.txt", "-r", tmp_path / "run", "--device", "cpu"]
    ended = forked.run(2, arguments, environment={"NARROW": "1"})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("layers compute in INT8") + ended.stderr.count("layers compute in INT8") == 1
    ranges = trained_ranges(load_checkpoint(tmp_path / "run/weights/resnet_002.safetensors").module)
    assert ranges.keys() == (expected := trained_ranges(load_checkpoint(one.last).module)).keys()
    for layer, parts in ranges.items():
        assert parts == pytest.approx(expected[layer], rel=2**-10), layer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_can_be_compiled(
    asked: Make, done: TrainingResult, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the graphs of both passes: C++ for them takes three minutes, and `test_compiler` has some made."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    result = train(asked(), tmp_path, device="cpu", reporter=quiet(), compile_network=True)
    # three steps: the kernels' other roundings have not spread yet, where a training in float is 6 % off
    assert result.rows[0].loss == pytest.approx(done.rows[0].loss, rel=1e-3)
