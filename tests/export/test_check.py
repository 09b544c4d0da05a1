"""An FP32 file is held against float64 where float32 rounds a network by more than the plain bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from trt_cls.artefacts.onnx_file import OnnxModel
from trt_cls.contract import Contract, Precision
from trt_cls.errors import ExportError
from trt_cls.export import original
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8
from trt_cls.export.parity import BOUNDS
from trt_cls.preprocessing.description import default_preprocessing_of_tao
from trt_cls.spec.experiment import ModelConfig

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that the rounding of every network exceeds."""
    monkeypatch.setitem(BOUNDS, "fp32", replace(BOUNDS["fp32"], max_abs_difference=1e-12, tie=0.0))


@pytest.fixture
def exporter(fp32: onnx.ModelProto, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts an exporter in place that scales the weights of the first class; 1 is what torch's does."""

    def scaling(factor: float) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(fp32)
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "predictions.weight"]
        values = numpy_helper.to_array(tensor).copy()
        values[0] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        monkeypatch.setattr(original, "onnx_from_module", lambda *given: OnnxModel(model, contract))

    return scaling


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("embed", [False, True])
def test_a_file_that_rounds_as_the_network_does_is_kept(
    checkpoint: Path, tmp_path: Path, exporter: Callable[[float], None], embed: bool
) -> None:
    exporter(1)
    said: list[str] = []
    export(checkpoint, tmp_path / "model.onnx", embed=embed, builder="none", say=said.append)
    assert "from its answers in float64, the file" in said[-1]
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.usefixtures("narrow")
def test_a_thousandth_more_on_a_weight_is_no_rounding(
    checkpoint: Path, tmp_path: Path, exporter: Callable[[float], None]
) -> None:
    exporter(1.001)
    with pytest.raises(ExportError, match="the export changed the network"):
        export(checkpoint, tmp_path / "model.onnx", builder="none")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(
    ("factor", "reason"),
    [(1, "^the {0} file .* too coarse"), (-30, "^before the conversion to {0}: .*the export changed")],
)
def test_a_network_that_the_exporter_changed_is_not_blamed_on_rounding(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    exporter: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    factor: float,
    reason: str,
) -> None:
    exporter(factor)
    monkeypatch.setitem(BOUNDS, precision, replace(BOUNDS[precision], max_abs_difference=0))
    int8 = Int8(images=pictures, batches=1, method="minmax")
    with pytest.raises(ExportError, match=reason.format(precision)):
        export(checkpoint, tmp_path / "model.onnx", precision=precision, int8=int8, images=pictures, builder="none")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_an_untrained_efficientnet_is_exported(tmp_path: Path, seed: int) -> None:
    """It multiplies the rounding of its input until probabilities differ in their fourth digit."""
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    torch.manual_seed(seed)
    config = ModelConfig(arch="efficientnet_b0", input_image_size="3,224,224", use_batch_norm=True)
    contract = Contract(config, default_preprocessing_of_tao(config.input_shape), tuple("abcde"))
    save_checkpoint(tmp_path / "model.safetensors", build(config, 5).eval(), contract)
    result = export(tmp_path / "model.safetensors", tmp_path / "model.onnx", builder="none")
    assert result.parity is not None
    assert result.parity.top1_agreement == 1
