from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_cls.contract import Contract
from trt_cls.errors import ExportError
from trt_cls.export.calibration import BINS, LEVELS, Histogram, Method, measure_magnitudes, threshold
from trt_cls.export.images import images_for

pytest.importorskip("onnxruntime")


def histogram(batches: Sequence[Any]) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.add(np.asarray(batch, np.float32))
    return found


@pytest.fixture(scope="module")
def values() -> Any:
    """Half zeros and a long tail, as behind a ReLU."""
    generator = np.random.default_rng(0)
    return np.maximum(generator.normal(size=400_000) * generator.exponential(size=400_000), 0).astype(np.float32)


def test_what_comes_later_and_larger_loses_nothing_that_came_before() -> None:
    found = histogram([[0, 0], [0.5, -1], [9, 0.25], [2]])
    assert found.counts.sum() == 7
    assert found.largest == 9
    assert 9 <= found.top <= 18
    expected = np.histogram([0, 0, 0.5, 1, 9, 0.25, 2], BINS, (0, found.top))[0]
    # A bin to the left where a value was the largest of its batch: the last bin is closed on both sides.
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 1


def test_minmax_cuts_nothing(values: Any) -> None:
    assert threshold(histogram(np.split(-values, 4)), "minmax") == values.max()


def test_percentile_is_numpys_to_the_width_of_a_bin(values: Any) -> None:
    found = histogram(np.split(values, 4))
    exact = np.quantile(values, 0.9999)
    assert exact < values.max() / 1.5, "the tail is long enough to tell it from minmax"
    assert exact <= threshold(found, "percentile") <= exact + found.top / BINS * 1.01


def divergence(counts: Any, kept: int) -> float:
    """By another way than the code's: level by level, the divergence itself by SciPy."""
    stats = pytest.importorskip("scipy.stats")
    exact = counts[:kept].astype(float)
    exact[0] = exact[1]
    coarse = np.zeros(kept)
    for level in range(LEVELS):
        members = [index for index in range(kept) if index * LEVELS // kept == level and exact[index]]
        if members:
            coarse[members] = exact[members].mean()
    exact[-1] += counts[kept:].sum()
    return float(stats.entropy(exact, coarse))


def test_entropy_loses_least_information_of_all_cuts(values: Any) -> None:
    found = histogram(np.split(values, 4))
    cut = threshold(found, "entropy")
    assert cut < 0.9 * values.max(), "it does cut"
    chosen = divergence(found.counts, round(cut * BINS / found.top))
    others = [divergence(found.counts, kept) for kept in range(LEVELS, BINS + 1, 192)]
    assert chosen <= min(others) * (1 + 1e-9)


def test_entropy_ignores_a_lone_outlier_and_keeps_an_even_spread() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(size=200_000)
    assert 2 < threshold(histogram([np.append(normal, 50)]), "entropy") < 8
    assert threshold(histogram([generator.uniform(-1, 1, 200_000)]), "entropy") > 0.95


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_an_activation_that_is_always_zero_has_no_range(method: Method) -> None:
    assert threshold(histogram([[0, 0, 0]]), method) == 0


def test_magnitudes_are_those_of_the_network_on_the_pixels_of_inference(
    fp32: onnx.ModelProto, network: Any, contract: Contract, pictures: Path
) -> None:
    import torch

    images = images_for(contract.preprocessing, pictures)
    (batch,) = images.batches()
    seen: list[Any] = []
    dense = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.from_numpy(batch))
    handle.remove()
    (pooled,) = [node.input[0] for node in fp32.graph.node if node.op_type == "Gemm"]
    found = measure_magnitudes(fp32, ["input_1", pooled], images.batches())
    assert found["input_1"].largest == np.abs(batch).max()
    assert found[pooled].largest == pytest.approx(float(seen[0].abs().max()), rel=1e-4)
    assert found[pooled].counts.sum() == seen[0].numel()


def test_a_network_that_overflows_is_refused(fp32: onnx.ModelProto) -> None:
    batch = np.full((1, 3, 32, 32), np.inf, np.float32)
    with pytest.raises(ExportError, match="NaN or infinity"):
        measure_magnitudes(fp32, ["input_1"], [batch])
