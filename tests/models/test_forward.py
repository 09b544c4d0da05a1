from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.records import config, label
from support.reference_weights import batch_norm, depthwise_kernel_and_bias, fill, images, kernel_and_bias
from support.shared_data import tao_json, tao_records
from trt_cls.models import build

RECORDS = tao_records("forward_outputs.json")
SLOW = {("resnet", 50), ("efficientnet_b1", None), ("cspdarknet", 19), ("darknet", 19)}
TOLERANCE = 1e-5
CHAOS = 4
"""How often the recorded noise (inputs moved by one float32 rounding) another order of summation may make."""


def recipe_weights(layer: dict[str, Any]) -> list[np.ndarray]:
    name, kind = layer["layer_name"], layer["layer_type"]
    shape = tuple(layer["weights"][0]["shape"])
    if kind == "BatchNormalization":
        return batch_norm(name, shape[0])
    make = depthwise_kernel_and_bias if kind == "DepthwiseConv2D" else kernel_and_bias
    return make(name, shape, len(layer["weights"]) == 2)


def test_the_recipe_makes_the_recorded_weights_and_input() -> None:
    vectors = tao_json("recipe_vectors.json")
    made = [
        (weights, recipe_weights(layer))
        for weights, layer in ((layer["weights"], layer) for layer in vectors["layers"])
    ]
    made.append(([vectors["test_input"]], [images(tuple(vectors["test_input"]["size"]))]))
    for recorded, arrays in made:
        for expected, array in zip(recorded, arrays, strict=True):
            assert list(array.shape) == expected["shape"]
            assert array.ravel()[:8].tolist() == np.float32(expected["first8"]).tolist()
            assert array.ravel()[-1] == np.float32(expected["last"])
            assert array.astype(np.float64).sum() == pytest.approx(expected["sum_float64"], rel=1e-12)


def network(record: dict[str, Any]) -> nn.Module:
    ignored = {"activation": None} if "ignores activation" in record.get("quirk", "") else {}
    return fill(build(config(record, **ignored), record["nclasses"], tao_pooling=True))


def run(module: nn.Module, record: dict[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Probabilities, and what each layer puts out."""
    seen: dict[str, Tensor] = {}
    for name, child in module.named_children():
        child.register_forward_hook(lambda _, __, value, name=name: seen.update({name: value}))
    with torch.no_grad():
        probabilities = module(torch.from_numpy(images(tuple(record["input_size"])))).softmax(1)
    return probabilities.numpy(), seen


def assert_like(value: Tensor, expected: dict[str, Any]) -> None:
    assert list(value.shape) == expected["shape"]
    flat = value[0].numpy().ravel()
    np.testing.assert_allclose(flat[:: max(1, flat.size // 16)][:16], expected["sample"], rtol=0, atol=TOLERANCE)
    statistics = [value.mean(), value.std(correction=0), value.abs().max()]
    np.testing.assert_allclose(statistics, [expected[key] for key in ("mean", "std", "absmax")], rtol=0, atol=TOLERANCE)


def assert_normalised_by_the_batch(module: nn.Module, record: dict[str, Any]) -> None:
    for child in module.children():
        if isinstance(child, nn.BatchNorm2d):
            child.train()
    probabilities, _ = run(module, record)
    tolerance = max(TOLERANCE, CHAOS * record["probs_bn_batch_stats_noise"])
    np.testing.assert_allclose(probabilities, record["probs_bn_batch_stats"], rtol=0, atol=tolerance)


def marked(record: dict[str, Any]) -> Any:
    slow = (record["arch"], record["n_layers"]) in SLOW
    return pytest.param(record, id=label(record), marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("record", [marked(record) for record in RECORDS if "error" not in record])
def test_a_forward_pass_gives_taos_numbers(record: dict[str, Any]) -> None:
    module = network(record)
    probabilities, seen = run(module, record)
    np.testing.assert_allclose(probabilities, record["probs"], rtol=0, atol=TOLERANCE)
    for key in ("first_conv", "mid"):
        name = record[key]["name"]
        fused = record["arch"] == "alexnet" and name.startswith("conv")
        assert_like(seen[f"{name}_relu" if fused else name], record[key])
    maps = [value for value in seen.values() if list(value.shape) == record["pre_head"]["shape"]]
    before_head = -2 if record["arch"] == "googlenet" and record["options"]["head"] else -1
    assert_like(maps[before_head], record["pre_head"])
    if "probs_bn_batch_stats" in record:
        assert_normalised_by_the_batch(module, record)
