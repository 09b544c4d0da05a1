from __future__ import annotations

from math import prod
from typing import Any

import pytest

from support.records import config, outline
from support.shared_data import tao_json, tao_records
from trt_cls.models.network import count_parameters
from trt_cls.spec.architectures import ARCHITECTURES

FAMILIES = [arch for arch in ARCHITECTURES if arch not in {f"efficientnet_b{size}" for size in range(2, 8)}]
EACH_FAMILY = pytest.mark.parametrize(
    ("arch", "depths"),
    [
        pytest.param("resnet", {10, 50}, id="resnet10-50"),
        # of the same blocks in other numbers
        pytest.param("resnet", {18, 34, 101}, id="resnet18-34-101", marks=pytest.mark.slow),
        *(
            pytest.param(arch, set(), id=arch, marks=pytest.mark.slow if arch == "efficientnet_b1" else ())
            for arch in FAMILIES
            if arch != "resnet"
        ),
    ],
)


def records(name: str, arch: str) -> list[dict[str, Any]]:
    return [record for record in tao_records(name) if record["arch"] == arch]


@EACH_FAMILY
def test_every_combination_of_options_has_as_many_parameters_as_in_tao(arch: str, depths: set[int]) -> None:
    wrong = []
    for record in records("param_counts.json", arch):
        if depths and record["n_layers"] not in depths:
            continue
        if "error" in record or could_not_run(record):
            continue
        counts = count_parameters(outline(config(record), record["nclasses"]))
        if counts != (record["trainable_params"], record["total_params"]):
            wrong.append((record, counts))
    assert not wrong


def could_not_run(record: dict[str, Any]) -> bool:
    """Keras built the head for a map of a size that never comes out of the pooling."""
    real, believed = record["output_shape_before_head"], record["output_shape_before_head_keras_inferred"]
    return record["arch"] in ("vgg", "googlenet") and record["retain_head"] and real != believed


@pytest.mark.parametrize(("arch", "units"), [("vgg", 4096), ("googlenet", 10)])
def test_a_head_that_tao_builds_for_the_wrong_map_fits_the_real_one(arch: str, units: int) -> None:
    broken = [record for record in records("param_counts.json", arch) if could_not_run(record)]
    assert broken
    for record in broken:
        excess = prod(record["output_shape_before_head_keras_inferred"]) - prod(record["output_shape_before_head"])
        counts = count_parameters(outline(config(record)))
        assert counts.total == record["total_params"] - excess * units


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
def test_a_map_too_small_for_the_papers_head_is_averaged_whole(arch: str) -> None:
    refused = [record for record in records("param_counts.json", arch) if "error" in record]
    assert refused
    for record in refused:
        with_own_head = config(record, retain_head=False)
        assert count_parameters(outline(config(record))) == count_parameters(outline(with_own_head))


@pytest.mark.parametrize("size", range(2, 8))
def test_larger_efficientnets_have_as_many_parameters_as_in_tao(size: int) -> None:
    defaults = tao_json("freeze_blocks.json")["efficientnet_b2_b7_defaults"]
    (record,) = [record for record in defaults if record["arch"] == f"efficientnet_b{size}"]
    assert count_parameters(outline(config(record))) == (record["trainable_params"], record["total_params"])


@pytest.mark.parametrize("options", ["some", pytest.param("all", marks=pytest.mark.slow)])
@EACH_FAMILY
def test_freeze_blocks_freezes_what_tao_freezes(arch: str, depths: set[int], options: str) -> None:
    recorded = [r for r in records("freeze_blocks.json", arch) if not depths or r["n_layers"] in depths]
    of_depth = {record["n_layers"]: record for record in recorded}
    for record in recorded if options == "all" else of_depth.values():
        for key, trainable in record["trainable_params_with_freeze_blocks"].items():
            blocks = tuple(record["valid_blocks"]) if key == "all" else (int(key),)
            network = outline(config(record, freeze_blocks=blocks))
            assert count_parameters(network) == (trainable, record["total_params"]), (record, key)
            if layers := record.get("frozen_layers", {}).get(key):
                weights = network.named_parameters()
                assert {name.rsplit(".", 1)[0] for name, weight in weights if not weight.requires_grad} == set(layers)


@pytest.mark.parametrize("arch", FAMILIES)
def test_freeze_bn_leaves_gamma_and_beta_trainable(arch: str) -> None:
    for record in records("freeze_blocks.json", arch):
        counts = count_parameters(outline(config(record, freeze_bn=True)))
        assert counts.trainable == (record["trainable_params_freeze_bn"] or record["trainable_params_no_freeze"])
