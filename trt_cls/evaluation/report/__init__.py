"""HTML reports: one self-contained file each, without network access. Templates, tables of contract and versions.

Also the report of a comparison. Does not know: how figures are measured. Begin with `evaluation_page`, the report of an
evaluation.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trt_cls.contract import Contract
from trt_cls.engines.backends import BACKENDS
from trt_cls.evaluation.compare import Change, Comparison
from trt_cls.evaluation.prediction_sets import calibration_rows
from trt_cls.evaluation.report.selection import thumbnails
from trt_cls.gpu import visible_gpu
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.version import PRODUCER


def page(template: str, **content: Any) -> str:
    """The HTML of `templates/<template>` filled with `content`."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trt_cls.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1, as in "97.5 %"."""
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%")


def common_folder(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds all `paths`."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def path_text(path: Path, folder: Path | None = None) -> str:
    """`path`, relative to `folder` if one is given, as text that can be written as UTF-8."""
    text = os.path.relpath(path, folder) if folder else str(path)
    return text.encode("utf-8", "replace").decode("utf-8")


PACKAGES = tuple(dict.fromkeys(("numpy", "pillow", "onnx", *(name for row in BACKENDS for name in row.packages))))
"""Packages that can change predictions or their speed."""

TableRows = list[tuple[str, str]]


def contract_rows(contract: Contract) -> TableRows:
    """The network and its preprocessing, as a table."""
    model, pixels = contract.model, contract.preprocessing
    has_depths = model.arch in ARCHITECTURES and bool(ARCHITECTURES[model.arch].depths)
    resize = {"center": "cover, then cut out the middle", "none": "stretch"}[pixels.crop]
    eight_bits = "" if contract.eight_bits is None else f", {contract.eight_bits:.1%} of the multiply-adds in 8 bits"
    return [
        ("Network", f"{model.arch} {model.n_layers}" if has_depths else model.arch),
        ("Precision", contract.precision + eight_bits),
        ("Input", f"{pixels.channels} × {pixels.height} × {pixels.width}, {pixels.channel_order}"),
        ("Resize", f"{resize}, {pixels.filter}"),
        ("Normalization", f"(pixel / {pixels.divisor:g} − mean) / std"),
        ("Mean", ", ".join(f"{value:g}" for value in pixels.mean)),
        ("Std", ", ".join(f"{value:g}" for value in pixels.std)),
        ("Classes", f"{len(contract.classes):,}"),
        *([("Task", "several labels per image, each by its threshold")] if contract.task == "multi" else []),
        *calibration_rows(contract),
        ("Written by", contract.producer),
    ]


def version_rows() -> TableRows:
    """Software, machine and time, as a table."""
    gpu = visible_gpu()
    return [
        ("Report by", PRODUCER),
        ("Written", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("Machine", f"{platform.system()} {platform.machine()}, {gpu.name if gpu else 'no GPU'}"),
        ("Python", platform.python_version()),
        *((name, found) for name in PACKAGES if (found := _version(name))),
    ]


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


PICTURED = 200
LISTED = 2000


def comparison_page(comparison: Comparison, a: Path, b: Path) -> str:
    """The report of a comparison as HTML; changed images with the highest confidence of both models first."""
    changes = sorted(comparison.changed, key=lambda change: -min(change.confidence_a, change.confidence_b))
    folder = common_folder(change.path for change in changes) if changes else Path()
    thumbs = thumbnails((change.path, change.source) for change in changes[:PICTURED])

    def named(listed: list[Change]) -> list[tuple[str, Change, str]]:
        return [(path_text(change.path, folder), change, thumbs.get(change.path, "")) for change in listed]

    return page(
        "comparison.html",
        title=f"{path_text(a)} and {path_text(b)}",
        a=path_text(a),
        b=path_text(b),
        comparison=comparison,
        pictured=named(changes[:PICTURED]),
        listed=named(changes[PICTURED:LISTED]),
        versions=version_rows(),
    )
