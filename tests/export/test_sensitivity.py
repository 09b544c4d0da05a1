from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import Contract
from trt_cls.data.folder import image_folder
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import DataError, ExportError
from trt_cls.export.int8.layers import quantizable
from trt_cls.export.int8.qdq import measure_magnitudes, with_qdq
from trt_cls.export.int8.sensitivity import (
    LabeledImages,
    RankedLayer,
    choose,
    costliest_first,
    rank,
    signal_to_noise,
    table,
)
from trt_cls.export.sample_images import images_for

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def measured(fp32: onnx.ModelProto, contract: Contract, pictures: Path) -> tuple[Any, dict[str, float]]:
    tensors = sorted({name for names in quantizable(fp32).values() for name in names})
    (batch,) = images_for(contract.preprocessing, pictures).batches()
    return batch, {name: found.largest for name, found in measure_magnitudes(fp32, tensors, [batch]).items()}


def test_a_layer_whose_range_is_cut_to_a_tenth_costs_most(fp32: onnx.ModelProto, measured: Any) -> None:
    batch, thresholds = measured
    layers = quantizable(fp32)
    spoiled = next(name for name in reversed(layers) if name != list(layers)[-1] and len(layers[name]) == 1)
    (tensor,) = layers[spoiled]
    alone = [name for name in layers if tensor not in layers[name]] + [spoiled]
    ranking = rank(fp32, {**thresholds, tensor: thresholds[tensor] / 10}, alone, batch)
    assert ranking[0].name == spoiled
    assert ranking[0].signal_to_noise < ranking[1].signal_to_noise - 5
    assert {layer.name for layer in ranking} == set(alone)
    assert ranking[0].weights in {tensor.name.removesuffix(".weight") for tensor in fp32.graph.initializer}


class Scripted:
    """Gives for a graph the accuracy of a script, by how many additions and layers with weights are quantized."""

    metric = "top-1"

    def __init__(self, layers: int, accuracies: dict[int, float]) -> None:
        self.layers, self.accuracies = layers, accuracies

    def top1(self, model: onnx.ModelProto) -> float:
        nodes = model.graph.node
        dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        if not dequantized:
            return 0.9
        inner = [node for node in nodes if node.op_type in ("Conv", "Gemm") and node.input[1] in dequantized]
        return self.accuracies[self.layers - len(inner)]


@pytest.mark.parametrize(("loss", "kept"), [(0.2, 0), (0.03, 3), (0.0, 5)])
def test_the_fewest_layers_stay_that_meet_the_loss(
    fp32: onnx.ModelProto, contract: Contract, measured: Any, loss: float, kept: int
) -> None:
    names = [name for name, tensors in quantizable(fp32).items() if "add" not in name][:8]
    ranking = tuple(RankedLayer(name, name, "Conv", float(index)) for index, name in enumerate(names))
    accuracies = {0: 0.71, 1: 0.8, 2: 0.86, 3: 0.87, 4: 0.88, 5: 0.9, 6: 0.9, 7: 0.9}
    said: list[str] = []
    labeled: Any = Scripted(len(names), accuracies)
    choice = choose(OnnxModel(fp32, contract), measured[1], ranking, labeled, loss, said.append)
    assert (choice.kept, choice.int8) == (kept, names[kept:])
    assert (choice.top1_fp32, choice.top1_all_int8, choice.top1) == (0.9, 0.71, accuracies[kept])
    assert [line.endswith("float16") for line in table(choice)[1:]] == [True] * kept + [False] * (len(names) - kept)
    assert all("top-1" in line for line in said)


def test_signal_to_noise_is_that_of_the_files_answers(fp32: onnx.ModelProto, measured: Any, network: Any) -> None:
    batch, thresholds = measured
    narrow = {name: value / 64 for name, value in thresholds.items()}
    # 40 dB for each layer, but for the last: what the images have in common fills its steps, and leaves it 11
    layers = list(quantizable(fp32))[:-1]
    found = signal_to_noise(fp32, {"minmax": thresholds, "percentile": narrow}, layers, batch)
    # a 64th of the range carries next to nothing, 1 dB; float32 of another order moves either by hundredths
    assert found["minmax"] > 20 > 10 > found["percentile"]
    with torch.no_grad():
        exact = deepcopy(network).double()(torch.from_numpy(batch).double()).numpy()
    for method, ranges in (("minmax", thresholds), ("percentile", narrow)):
        # a session of the same settings: in another order of sums values near a middle go to the other step
        session = session_of(with_qdq(fp32, ranges, layers), ["logits"])
        (logits,) = session.run(["logits"], {"input_1": batch})
        signal, given = (values - values.mean(axis=1, keepdims=True) for values in (exact, logits))
        expected = 10 * np.log10((signal**2).mean() / ((given - signal) ** 2).mean())
        assert found[method] == pytest.approx(expected, abs=0.01)


def test_a_loss_that_no_layer_meets_is_an_error(fp32: onnx.ModelProto, contract: Contract, measured: Any) -> None:
    names = [name for name in quantizable(fp32) if "add" not in name][:3]
    labeled: Any = Scripted(3, dict.fromkeys(range(3), 0.5))
    layers = tuple(RankedLayer(n, n, "Conv", 0) for n in names)
    with pytest.raises(ExportError, match="no layer is left"):
        choose(OnnxModel(fp32, contract), measured[1], layers, labeled, 0.01, lambda line: None)


def test_top1_is_that_of_the_labels(fp32: onnx.ModelProto, network: Any, contract: Contract, pictures: Path) -> None:
    import torch

    samples = image_folder(pictures, contract.classes).samples
    (batch,) = images_for(contract.preprocessing, pictures).batches()
    with torch.no_grad():
        likeliest = network(torch.from_numpy(batch)).argmax(1).numpy()
    expected = float(np.mean(likeliest == [sample.label for sample in samples]))
    assert LabeledImages(contract.preprocessing, samples).top1(fp32) == expected


def test_labeled_images_of_which_none_can_be_decoded_are_an_error(
    fp32: onnx.ModelProto, contract: Contract, tmp_path: Path
) -> None:
    for name in contract.classes:
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.png").write_bytes(b"no image")
    samples = image_folder(tmp_path, contract.classes).samples
    with pytest.raises(DataError, match="none of 5"):
        LabeledImages(contract.preprocessing, samples).top1(fp32)


@pytest.mark.parametrize("noise", [-0.004, 0.0, 0.004])
def test_layers_that_cost_the_same_stand_in_the_order_of_the_graph(noise: float) -> None:
    """The noise is what another processor's order of sums moves."""
    costs = {"a": 30.0, "b": 12.0 + noise, "c": 12.0 - noise, "d": 5.0, "e": 12.05, "f": np.inf, "g": 30.5}
    layers = [RankedLayer(name, name, "Conv", cost) for name, cost in costs.items()]
    assert "".join(layer.name for layer in costliest_first(layers)) == "dbceagf"
