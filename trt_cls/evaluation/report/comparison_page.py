"""The page of a comparison: how far two models are apart, and the images that they label differently."""

from __future__ import annotations

from pathlib import Path

from trt_cls.evaluation.compare import Change, Comparison
from trt_cls.evaluation.report.about import version_rows
from trt_cls.evaluation.report.page import common_folder, page, shown
from trt_cls.evaluation.report.thumbnails import thumbnails

PICTURED = 200
LISTED = 2000


def comparison_page(comparison: Comparison, a: Path, b: Path) -> str:
    """The whole page as HTML; the images on which the two are surest of different classes come first."""
    changes = sorted(comparison.changed, key=lambda change: -min(change.confidence_a, change.confidence_b))
    folder = common_folder(change.path for change in changes) if changes else Path()
    thumbs = thumbnails(change.path for change in changes[:PICTURED])

    def named(listed: list[Change]) -> list[tuple[str, Change, str]]:
        return [(shown(change.path, folder), change, thumbs.get(change.path, "")) for change in listed]

    return page(
        "comparison.html",
        title=f"{shown(a)} and {shown(b)}",
        a=shown(a),
        b=shown(b),
        comparison=comparison,
        pictured=named(changes[:PICTURED]),
        listed=named(changes[PICTURED:LISTED]),
        versions=version_rows(),
    )
