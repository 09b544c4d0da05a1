from __future__ import annotations

from typing import NamedTuple

import pytest

from support.shared_data import tao_records
from trt_cls.cli import main
from trt_cls.spec.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow  # the table builds every network
OPTIONS = ("use_batch_norm", "use_bias", "use_pooling", "all_projections", "retain_head")


class Row(NamedTuple):
    parameters: int
    gflops: float
    options: set[str]


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """The first row of each architecture."""
    pytest.importorskip("torch")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", lambda text="", **_: lines.append(text))
        assert main(["models"]) == 0
    return {line.split()[0]: row(line) for line in lines if line.split(" ")[0] in ARCHITECTURES}


def row(line: str) -> Row:
    sizes = line[15:46].split()
    return Row(int(sizes[-2].replace(",", "")), float(sizes[-1]), set(line.replace(",", " ").split()[3:]))


def test_every_architecture_has_a_row(rows: dict[str, Row]) -> None:
    assert list(rows) == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("arch", "weights"), [("mobilenet_v2", "MobileNet_V2_Weights"), ("efficientnet_b0", "EfficientNet_B0_Weights")]
)
def test_sizes_are_those_that_torchvision_states(rows: dict[str, Row], arch: str, weights: str) -> None:
    models = pytest.importorskip("torchvision").models
    meta = getattr(models, weights).DEFAULT.meta
    statistics = sum(buffer.numel() for buffer in getattr(models, arch)().buffers() if buffer.dim())
    assert rows[arch].parameters == meta["num_params"] + statistics
    assert rows[arch].gflops == pytest.approx(meta["_ops"], abs=0.01)  # the table has two decimals


def test_options_are_those_that_tao_honours(rows: dict[str, Row]) -> None:
    for record in tao_records("param_counts.json"):
        honoured = {name for name in OPTIONS if record[name] is not None}
        assert rows[record["arch"]].options.intersection(OPTIONS) == honoured, record["arch"]
