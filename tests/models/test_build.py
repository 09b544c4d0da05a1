from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support.records import activation, outline
from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.families import FAMILIES
from trt_cls.models.network import INPUT, Add, NamedLayer, Network
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import BatchNormConfig, ModelConfig

LIKE_B0 = [f"efficientnet_b{size}" for size in range(1, 8)]


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in LIKE_B0])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(16, 150),
    width=st.integers(16, 150),
    pooling=st.booleans(),
    head=st.booleans(),
    data=st.data(),
)
def test_every_size_works_or_names_the_smallest_side(
    arch: str, channels: int, height: int, width: int, pooling: bool, head: bool, data: st.DataObject
) -> None:
    known = ARCHITECTURES[arch]
    config = ModelConfig(
        arch=arch,
        n_layers=data.draw(st.sampled_from(known.depths or (18,))),
        input_image_size=f"{channels},{height},{width}",
        use_batch_norm=True,
        use_pooling=pooling,
        all_projections=known.has_shortcuts,
        retain_head=head,
        activation=activation(data.draw(st.sampled_from(known.activations))),
    )
    try:
        network = outline(config, 7)
    except RequestError as refused:
        (smallest,) = re.findall(r"at least (\d+);", str(refused))
        assert min(height, width) < int(smallest) <= 32
        outline(replace(config, input_image_size=f"{channels},{smallest},{smallest}"))
        return
    assert network.eval()(torch.empty(2, channels, height, width, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("config", "smallest"),
    [
        (ModelConfig(arch="darknet", n_layers=19, input_image_size="3,31,64"), 32),
        (ModelConfig(arch="cspdarknet_tiny", input_image_size="3,200,28"), 29),
        (ModelConfig(arch="vgg", n_layers=16, input_image_size="3,16,16", use_pooling=True, retain_head=True), 32),
    ],
)
def test_too_small_an_image_is_refused_naming_the_smallest_side_that_works(config: ModelConfig, smallest: int) -> None:
    with pytest.raises(RequestError, match=f"{config.input_image_size}.*at least {smallest};"):
        outline(config)
    bare = {"arch": config.arch, "n_layers": config.n_layers, "use_pooling": config.use_pooling}
    outline(ModelConfig(**bare, retain_head=config.retain_head, input_image_size=f"3,{smallest},{smallest}"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(arch="resnt"), r'arch "resnt".*did you mean "resnet"'),
        (ModelConfig(arch="vgg"), r"n_layers 18: expected one of 16, 19 for vgg"),
        (ModelConfig(activation=activation("mish")), r'activation_type "mish": expected one of relu, swish for resnet'),
    ],
)
def test_what_a_family_does_not_have_is_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(config, 3)


def test_a_head_of_another_width_than_the_classes_is_refused() -> None:
    with pytest.raises(RequestError, match=r"predictions is 4 wide.*3 classes"):
        build(ModelConfig(n_layers=10, input_image_size="3,32,32"), 3, widths={"predictions": 4})


@pytest.mark.parametrize(("side", "sides_out"), [(224, 1), (256, 2), (288, 2), (448, 2), (544, 3), (32, 1)])
def test_the_final_pooling_of_a_new_resnet_sees_the_whole_map(side: int, sides_out: int) -> None:
    size = f"3,{side},{side}"
    network = outline(ModelConfig(n_layers=10, input_image_size=size, use_pooling=True, retain_head=True))
    pool, map_side = network.average_pooling2d_1, -(-side // 32)
    seen = torch.zeros(map_side)
    for window in range(sides_out):
        seen[window * pool.stride[0] : window * pool.stride[0] + pool.kernel_size[0]] += 1
    assert (seen > 0).all()
    assert pool(torch.ones(1, 1, map_side, map_side)).tolist() == torch.ones(1, 1, sides_out, sides_out).tolist()


def test_taos_final_pooling_sees_the_corner_alone() -> None:
    config = ModelConfig(n_layers=10, input_image_size="3,224,224", use_pooling=True)
    with torch.device("meta"):
        network = build(config, 3, tao_pooling=True)
    assert network.average_pooling2d_1(torch.ones(1, 1, 7, 7)).item() == pytest.approx(16 / 49)


def test_freeze_bn_keeps_the_running_statistics_while_training() -> None:
    config = ModelConfig(n_layers=10, input_image_size="3,32,32", use_batch_norm=True, freeze_bn=True)
    network = build(config, 3).train()
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert torch.equal(network.bn_conv1.running_mean, torch.zeros(64))
    assert network.bn_conv1.weight.grad.abs().sum() > 0


def test_batch_norm_takes_the_specs_constants_and_keras_momentum() -> None:
    constants = BatchNormConfig(momentum=0.99, epsilon=1e-3)
    network = outline(ModelConfig(n_layers=10, use_batch_norm=True, batch_norm_config=constants))
    assert network.bn_conv1.momentum == pytest.approx(0.01)
    assert network.bn_conv1.eps == 1e-3


def test_weights_start_glorot_uniform_and_biases_at_zero() -> None:
    network = build(ModelConfig(n_layers=10, input_image_size="3,32,32", use_bias=True), 3)
    limit = math.sqrt(6 / (3 * 3 * 256 + 3 * 3 * 512))
    assert 0.99 * limit < network.block_4a_conv_1.weight.abs().max() <= limit
    assert not network.block_4a_conv_1.bias.any()
    assert not network.predictions.bias.any()


@pytest.mark.parametrize(
    ("layer", "variance"),
    [("top_conv", 2 / 1280), ("block6d_dwconv", 2 / 25), ("block6d_se_expand", 2 / 1152)],
)
def test_convolutions_of_efficientnet_start_normal_by_their_fan_out(layer: str, variance: float) -> None:
    torch.manual_seed(0)
    network = build(ModelConfig(arch="efficientnet_b0", input_image_size="3,32,32"), 3)
    weight = getattr(network, layer).weight
    assert weight.var().item() == pytest.approx(variance, rel=0.05)
    assert weight.abs().max() <= 2 * math.sqrt(variance) / 0.8796 * 1.001


def test_efficientnet_drops_whole_samples_and_more_of_them_towards_the_end() -> None:
    network = outline(ModelConfig(arch="efficientnet_b1"))
    rates = [network.block1b_drop.rate, network.block4b_drop.rate, network.block7b_drop.rate]
    assert rates == pytest.approx([0.0125, 0.1125, 0.275])
    torch.manual_seed(0)
    dropped = network.block7b_drop.train()(torch.ones(4000, 2, 2, 2))
    kept = dropped[:, 0, 0, 0] > 0
    assert torch.equal(dropped, (kept / 0.725).view(-1, 1, 1, 1).expand_as(dropped))
    assert kept.float().mean().item() == pytest.approx(0.725, abs=0.03)


def test_the_split_of_cspdarknet_tiny_takes_the_second_half_of_the_channels() -> None:
    split = outline(ModelConfig(arch="cspdarknet_tiny")).conv_2_split_0
    assert split(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist() == [3, 4, 5]


def test_values_are_let_go_after_their_last_reader() -> None:
    steps = outline(ModelConfig(n_layers=10, use_batch_norm=True)).steps
    alive, peak = {"input_1"}, 0
    for step in steps:
        alive = (alive | {step.name}) - set(step.done_with)
        peak = max(peak, len(alive))
    assert alive == {steps[-1].name}
    assert peak <= 3


@pytest.mark.parametrize("activation_type", ["relu", "swish"])
def test_resnet_honours_the_activation(activation_type: str) -> None:
    network = outline(ModelConfig(n_layers=10, activation=activation(activation_type)))
    kinds = {type(module) for name, module in network.named_children() if "relu" in name or "activation" in name}
    assert kinds == {nn.ReLU if activation_type == "relu" else nn.SiLU}


SWITCHES = ("use_batch_norm", "use_bias", "use_pooling", "retain_head")


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in LIKE_B0])
def test_the_switches_in_the_table_are_those_that_change_the_network(arch: str) -> None:
    depth = min(ARCHITECTURES[arch].depths, default=18)
    plain = ModelConfig(arch=arch, n_layers=depth, input_image_size="3,64,64", use_batch_norm=True)

    def layers(config: ModelConfig) -> list[str]:
        network = outline(config, 7)
        return [f"{step} {getattr(network, step.name)}" for step in network.steps]

    switched = {name: replace(plain, **{name: not getattr(plain, name)}) for name in SWITCHES}
    changing = tuple(name for name in SWITCHES if layers(switched[name]) != layers(plain))
    assert ARCHITECTURES[arch].switches == changing


def test_every_family_has_a_row_in_both_tables() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()


def test_a_family_without_a_row_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, "vgg")
    with pytest.raises(RequestError, match='arch "vgg": expected one of resnet, alexnet'):
        outline(ModelConfig(arch="vgg"), 7)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet", {"n_layers": 10, "use_batch_norm": True}),
        ("mobilenet_v2", {"use_batch_norm": True}),
        ("cspdarknet_tiny", {"use_batch_norm": True}),
        ("googlenet", {"use_batch_norm": False}),
        ("squeezenet", {}),
    ],
)
def test_reused_memory_changes_no_output_and_no_gradient(arch: str, options: dict[str, Any]) -> None:
    config = ModelConfig(arch=arch, input_image_size="3,32,32", **options)
    torch.manual_seed(0)
    networks = [build(config, 3).train(), build(config, 3).train()]
    networks[1].load_state_dict(networks[0].state_dict())
    networks[1].reuse_memory()
    assert any(getattr(layer, "inplace", False) for layer in networks[1].children())
    images, found = torch.randn(2, 3, 32, 32), []
    for network in networks:
        torch.manual_seed(1)  # of dropout
        logits = network(images)
        logits.square().sum().backward()
        found.append([logits, *(weight.grad for weight in network.parameters())])
    for plain, reused in zip(*found, strict=True):
        assert torch.equal(plain, reused)


def test_memory_that_another_layer_reads_is_not_reused() -> None:
    layers = {
        "made": (nn.Conv2d(3, 4, 1), INPUT),
        "of_two_readers": (nn.ReLU(), "made"),
        "sum": (Add(), "of_two_readers", "made"),
        "of_one": (nn.ReLU(), "sum"),
        "flat": (nn.Flatten(), "of_one"),
        "of_a_view": (nn.ReLU(), "flat"),
    }
    network = Network([NamedLayer(name, layer, inputs) for name, (layer, *inputs) in layers.items()], (3, 2, 2))
    network.reuse_memory()
    assert [name for name, layer in network.named_children() if getattr(layer, "inplace", False)] == ["of_one"]
    images = torch.randn(2, 3, 2, 2)
    before = network.made(images)
    assert torch.equal(network(images), (before.relu() + before).relu().flatten(1))
