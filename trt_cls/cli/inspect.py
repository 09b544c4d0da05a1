"""`trt-cls inspect`: what a model file holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_cls.cli.options import PATH, common_options
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_cls.artefacts.sidecar import Sidecar
    from trt_cls.engines.inspection import Inspection, PlanLayer
    from trt_cls.engines.onnx_graph import Layer, Tensor


@click.command("inspect")
@click.argument("model", type=PATH)
@click.option("--layers", is_flag=True, help="A line for each layer, in place of counts.")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object.")
@common_options
def command(model: Path, layers: bool, as_json: bool) -> None:
    """Show contract, layers, precision, size and multiply-adds of a model file.

    MODEL is a .safetensors, .onnx or .engine file. A multiply-add is two floating-point operations.
    """
    from trt_cls.engines.inspection import inspect

    inspection = inspect(model)
    if as_json:
        echo(json.dumps(_content(inspection), indent=2))
        return
    echo("\n".join(f"{name:14} {value}" for name, value in _facts(inspection)))
    if inspection.layers:
        echo("\n" + (_layer_table(inspection.layers) if layers else _operation_table(inspection.layers)))
    if inspection.plan:
        echo("\n" + _plan_table(inspection.plan))
    if inspection.missing:
        echo(f"\nnot shown: {inspection.missing}")


def _facts(found: Inspection) -> list[tuple[str, str]]:
    from trt_cls.evaluation.report import contract_rows

    rows = [("File", f"{found.path}, {found.bytes:,} bytes"), ("SHA-256", found.sha256)]
    rows += contract_rows(found.contract)
    if found.parameters is not None:
        stored = ", as the graph stores them: export folds batch normalization" if found.path.suffix == ".onnx" else ""
        rows.append(("Parameters", f"{found.parameters:,}{stored}"))
    if found.weights:
        rows.append(("Values", ", ".join(f"{count:,} {kind}" for kind, count in found.weights.items())))
    if found.multiply_adds is not None:
        rows.append(("Multiply-adds", f"{found.multiply_adds:,} an image"))
    rows += [("Graph input", _tensor(tensor)) for tensor in found.inputs]
    rows += [("Graph output", _tensor(tensor)) for tensor in found.outputs]
    if found.sidecar:
        rows += _sidecar_rows(found.sidecar)
    return rows


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.type} [{', '.join(map(str, tensor.shape))}]"


def _sidecar_rows(sidecar: Sidecar) -> list[tuple[str, str]]:
    profile, parity = sidecar.profile, sidecar.parity
    rows = [
        ("Built by", f"{sidecar.builder} {sidecar.builder_version}"),
        ("Runs on", "compute capability " + ", ".join(sidecar.compute_capabilities)),
        ("Batches", f"{profile.minimum} to {profile.maximum}, best at {profile.optimum}"),
        ("Built from", f"{sidecar.onnx}, SHA-256 {sidecar.onnx_sha256}"),
    ]
    if parity:
        of = "label" if sidecar.contract.task == "multi" else "top-1"
        figures = f"{of} agreement {parity.top1_agreement:.2%}, max |Δprobability| {parity.max_abs_difference:.2g}"
        rows.append(("Parity", f"{figures} on {parity.source}"))
    return rows


def _operation_table(layers: Sequence[Layer]) -> str:
    """How often each operation occurs in each type, and what it holds and costs."""
    counts = Counter((layer.operation, layer.type) for layer in layers)
    lines = [f"{'operation':20} {'computes in':12} {'layers':>6} {'parameters':>13} {'multiply-adds':>15}"]
    for (operation, kind), count in counts.most_common():
        same = [layer for layer in layers if (layer.operation, layer.type) == (operation, kind)]
        parameters, cost = sum(layer.parameters for layer in same), sum(layer.multiply_adds for layer in same)
        lines.append(f"{operation:20} {kind:12} {count:6} {parameters:13,} {cost:15,}")
    return "\n".join(lines)


def _layer_table(layers: Sequence[Layer]) -> str:
    return "\n".join(
        f"{layer.operation:18} {layer.type:9} {'×'.join(map(str, layer.shape)):18} "
        f"{layer.parameters:11,} {layer.multiply_adds:13,}  {layer.name}"
        for layer in layers
    )


def _plan_table(layers: Sequence[PlanLayer]) -> str:
    return "\n".join(f"{layer.type:24} {', '.join(layer.formats):40} {layer.name}" for layer in layers)


def _content(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    content = asdict(found)
    content["path"] = str(found.path)
    content["contract"] = json.loads(found.contract.to_json())
    if found.sidecar:
        content["sidecar"]["contract"] = content["contract"]
    return content
