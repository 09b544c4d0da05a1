"""What stands small at the end of a page: the contract in words, and what ran where."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from trt_cls.contract import Contract
from trt_cls.gpu import visible_gpu
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.version import PRODUCER

PACKAGES = (
    "numpy", "pillow", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "openvino", "pycuda",
    "torch",
)  # fmt: skip
"""Those that can change an answer or its speed."""

Rows = list[tuple[str, str]]


def contract_rows(contract: Contract) -> Rows:
    """What the network is and which pixels it gets."""
    model, pixels = contract.model, contract.preprocessing
    has_depths = model.arch in ARCHITECTURES and bool(ARCHITECTURES[model.arch].depths)
    resize = {"center": "cover, then cut out the middle", "none": "stretch"}[pixels.crop]
    return [
        ("Network", f"{model.arch} {model.n_layers}" if has_depths else model.arch),
        ("Precision", contract.precision),
        ("Input", f"{pixels.channels} × {pixels.height} × {pixels.width}, {pixels.channel_order}"),
        ("Resize", f"{resize}, {pixels.filter}"),
        ("Normalisation", f"(pixel / {pixels.divisor:g} − mean) / std"),
        ("Mean", ", ".join(f"{value:g}" for value in pixels.mean)),
        ("Std", ", ".join(f"{value:g}" for value in pixels.std)),
        ("Classes", f"{len(contract.classes):,}"),
        ("Written by", contract.producer),
    ]


def version_rows() -> Rows:
    """The software, the machine and the time."""
    gpu = visible_gpu()
    return [
        ("Report by", PRODUCER),
        ("Written", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("Machine", f"{platform.system()} {platform.machine()}, {gpu.name if gpu else 'no GPU'}"),
        ("Python", platform.python_version()),
        *((name, found) for name in PACKAGES if (found := _version(name))),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
