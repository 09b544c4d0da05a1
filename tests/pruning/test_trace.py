"""Which filters go together in networks of every kind, and that the rest answers as if their channels were zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from support.calibration import calibrate
from support.zeroed import answer_with_zeroed
from trt_cls.models import build
from trt_cls.pruning.channel_graph import ChannelGraph
from trt_cls.pruning.selection import Criteria, kept_filters, scored
from trt_cls.pruning.surgery import filter_norms, multiply_adds_left, pruned_network, require_equal, zeroed_tensors
from trt_cls.pruning.trace import channel_graph
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import ModelConfig

SHAPE = (3, 32, 32)
QUICK = {"cspdarknet_tiny", "squeezenet"}
"""`test_settings` has resnet and mobilenet_v2; a small cell and another library's network squeeze and excite."""
CRITERIA = Criteria(threshold=0.5, granularity=1, min_filters=2)


def half(module: nn.Module, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Filters that are drawn, about half of each layer's; odd numbers, so that nothing fits by chance."""
    rng = np.random.default_rng(0)
    norms = {name: rng.uniform(0.1, 1, len(norms)).astype("f") for name, norms in filter_norms(module, graph).items()}
    return kept_filters(graph, scored(graph, norms, CRITERIA), CRITERIA)


BETWEEN = {("resnet", 34), ("resnet", 101), *((f"efficientnet_b{size}", None) for size in range(1, 7))}
"""Made of the blocks of the ones before and after them, in other numbers and widths."""
FAMILIES = [
    pytest.param(
        {"arch": family.name, "n_layers": depth or 18, "retain_head": head},
        id=f"{family.name}{depth or ''}{'-head' * head}",
        marks=() if family.name in QUICK and not head else pytest.mark.slow,
    )
    for family in ARCHITECTURES.values()
    for depth in family.depths or (None,)
    if (family.name, depth) not in BETWEEN
    for head in (False, True)
    # below the head all depths are as without
    if not head or (depth in (None, min(family.depths, default=None)) and family.name != "efficientnet_b7")
]


@pytest.mark.parametrize("options", FAMILIES)
def test_a_family_answers_as_if_removed_channels_were_zero(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build(ModelConfig(input_image_size="3,32,32", use_batch_norm=True, **options), 10)
    calibrate(network, torch.randn(4, *SHAPE))
    graph = channel_graph(network, SHAPE)
    assert list(graph.layers) == [
        name for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    kept = half(network, graph)
    assert multiply_adds_left(graph, kept) < 0.9 * multiply_adds_left(graph, everything(graph))
    assert len(kept[network.head]) == 10
    pruned, batch = pruned_network(network, graph, kept).double(), torch.randn(2, *SHAPE, dtype=torch.double)
    with torch.no_grad():
        wanted = answer_with_zeroed(network.double(), kept, batch)
        spread = float((wanted[0] - wanted[1]).abs().max())  # small where the rest of a deep network is not balanced
        assert spread > 1e-9
        torch.testing.assert_close(pruned(batch), wanted, rtol=0, atol=1e-5 * min(1.0, spread))


def everything(graph: ChannelGraph) -> dict[str, np.ndarray]:
    return {name: np.arange(layer.filters) for name, layer in graph.layers.items()}


EXTERNAL = {
    "torchvision/resnet18": 0.7,
    "torchvision/mobilenet_v3_small": 0.85,
    "timm/mobilenetv3_small_050": 0.85,
    "torchvision/shufflenet_v2_x0_5": 0.85,
    "torchvision/densenet121": 0.5,
    "torchvision/googlenet": 0.5,
    "torchvision/mnasnet0_5": 0.85,
    "torchvision/vgg11_bn": 0.5,
    "torchvision/convnext_tiny": 0.7,
    "torchvision/vit_b_32": 0.7,
    "timm/cspresnet50": 0.7,
    "timm/dla34": 0.7,
    "timm/ghostnet_100": 0.9,
    "timm/regnety_002": 1.0,
}
"""The share of multiply-adds that at most is left of each; in groups of channels, most stay."""


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=() if number < 2 else pytest.mark.slow) for number, arch in enumerate(EXTERNAL)]
)
def test_a_librarys_network_answers_as_if_removed_channels_were_zero(arch: str) -> None:
    pytest.importorskip(arch.split("/")[0])
    torch.manual_seed(0)
    module = build(ModelConfig(arch=arch, input_image_size="3,32,32"), 10).eval()
    scatter_statistics(module)
    graph = channel_graph(module, SHAPE)
    kept = half(module, graph)
    assert multiply_adds_left(graph, kept) / multiply_adds_left(graph, everything(graph)) < EXTERNAL[arch]
    assert_answers_as_zeroed(module, graph, kept, SHAPE)


def scatter_statistics(module: nn.Module) -> None:
    """So that a channel normalized by another's numbers shows."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight.data, 0.5, 1.5), (layer.bias.data, -0.2, 0.2),
                (layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 1.5),
            ):  # fmt: skip
                tensor.uniform_(low, high)


def assert_answers_as_zeroed(
    module: nn.Module, graph: ChannelGraph, kept: dict[str, np.ndarray], shape: tuple[int, int, int]
) -> None:
    pruned = pruned_network(module, graph, kept).double()
    module.double()
    zeroed, batch = zeroed_tensors(module, graph, kept), torch.randn(2, *shape, dtype=torch.double)
    with torch.no_grad():
        wanted = torch.func.functional_call(module, zeroed, (batch,))
        torch.testing.assert_close(pruned(batch), wanted, rtol=1e-6, atol=1e-9)
        # what is removed reaches no answer: any other filters in its place give the same
        for name, filters in kept.items():
            gone = np.setdiff1d(np.arange(graph.layers[name].filters), filters)
            weight = zeroed.setdefault(f"{name}.weight", module.get_parameter(f"{name}.weight").detach().clone())
            weight[gone] = torch.randn_like(weight[gone])
        torch.testing.assert_close(torch.func.functional_call(module, zeroed, (batch,)), wanted, rtol=1e-6, atol=1e-9)


class Cell(nn.Module):
    """A small network whose middle is given."""

    def __init__(self, middle: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.middle = middle
        self.last = nn.LazyLinear(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.middle(self.first(images)).flatten(1))


class Function(nn.Module):
    def __init__(self, function: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def squeeze_and_excite(m: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.b(functional.relu(m.a(x.mean((2, 3), keepdim=True)))))


def shuffled(m: Any, x: Tensor) -> Tensor:
    return m.a(x.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6))


TOGETHER = {
    "chain": (Function(lambda m, x: m.a(functional.max_pool2d(x, 2)), a=conv(8, 6)), [{"first"}, {"middle.a"}]),
    "residual": (Function(lambda m, x: x + m.a(x.relu()), a=conv(8, 8)), [{"first", "middle.a"}]),
    "sum of concatenations": (
        Function(
            lambda m, x: torch.cat([x, m.a(x)], 1) + torch.cat([m.b(x), m.c(x)], 1),
            a=conv(8, 6), b=conv(8, 8), c=conv(8, 6),
        ),
        [{"first", "middle.b"}, {"middle.a", "middle.c"}],
    ),
    "depthwise": (Function(lambda m, x: m.a(m.n(x)), a=conv(8, 8, 3, 8), n=nn.BatchNorm2d(8)), [{"first", "middle.a"}]),
    "squeeze and excite": (
        Function(squeeze_and_excite, a=conv(8, 2), b=conv(2, 8)), [{"first", "middle.b"}, {"middle.a"}],
    ),
    "one map for all channels": (Function(lambda m, x: x * m.a(x), a=conv(8, 1)), [{"first"}]),
    "channels last": (
        Function(lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1)).relu()), a=nn.Linear(8, 6), b=nn.Linear(6, 5)),
        [{"first"}, {"middle.a"}],  # what flattening a map of channels last makes is not followed
    ),
    "in groups": (Function(lambda m, x: m.a(x), a=conv(8, 8, 3, 4)), []),
    "split": (Function(lambda m, x: m.a(x[:, 4:]) + x.chunk(2, 1)[0], a=conv(4, 4)), []),
    "shuffled": (Function(shuffled, a=conv(8, 6)), [{"middle.a"}]),
    "normalized across channels": (
        Function(lambda m, x: m.a(functional.layer_norm(x, (8, 6, 6))), a=conv(8, 6)), [{"middle.a"}],
    ),
    "used twice": (Function(lambda m, x: m.a(m.a(x).relu()), a=conv(8, 8)), []),
    "computed weights": (Function(lambda m, x: functional.conv2d(x, m.a.weight * 2), a=conv(8, 8)), []),
    "a depthwise of joined channels": (
        Function(lambda m, x: m.b(torch.cat([x, m.a(x)], 1)), a=conv(8, 6), b=conv(14, 14, 3, 14)), [],
    ),
    "other origin": (Function(lambda m, x: x + torch.arange(8.0).view(8, 1, 1), a=conv(8, 8)), []),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOGETHER)
def test_layers_whose_channels_meet_are_pruned_together_and_whole_where_they_are_mixed(kind: str) -> None:
    torch.manual_seed(0)
    middle, expected = TOGETHER[kind]
    module = Cell(middle)
    module(torch.zeros(2, 3, 6, 6))
    module.eval()
    scatter_statistics(module)
    graph = channel_graph(module, (3, 6, 6))
    assert [set(group.layers) for group in graph.groups if not group.unprunable] == expected
    assert all(group.unprunable == "computes the logits" for group in graph.groups if "last" in group.layers)
    kept = half(module, graph)
    require_equal(pruned_network(module, graph, kept), module, graph, kept, (3, 6, 6))
    assert_answers_as_zeroed(module, graph, kept, (3, 6, 6))


@pytest.mark.parametrize(
    "arch", ["squeezenet", "torchvision/mobilenet_v3_small", pytest.param("timm/nf_regnet_b0", marks=pytest.mark.slow)]
)
def test_multiply_adds_are_those_that_torch_counts(arch: str) -> None:
    if "/" in arch:
        pytest.importorskip(arch.split("/")[0])
    module = build(ModelConfig(arch=arch, input_image_size="3,32,32"), 10).eval()
    graph = channel_graph(module, SHAPE)
    kept = half(module, graph)
    for network, filters in ((module, everything(graph)), (pruned_network(module, graph, kept), kept)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *SHAPE))
        assert 2 * multiply_adds_left(graph, filters) == counter.get_total_flops()
