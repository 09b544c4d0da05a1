"""What the folders for servers have in common: names, labels, which engine they can load, templates, filling.

Does not know: what stands in them, see `deepstream` and `triton`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trt_cls.artefacts.sidecar import Profile, read_sidecar, sidecar_path
from trt_cls.errors import RequestError
from trt_cls.files import atomic, results_folder


@dataclass(frozen=True)
class ServedPlan:
    """Whether there is a plan that a server with TensorRT can load."""

    path: Path | None
    profile: Profile
    """Batch sizes of the plan, or those to build one for."""
    why: str
    """Which TensorRT the plan needs, or why there is none."""


def plan_for_servers(engine: Path | None, no_engine: str, profile: Profile) -> ServedPlan:
    """The engine that was just written, where servers can load it: they bring TensorRT, not TensorRT-RTX."""
    if engine is None:
        return ServedPlan(None, profile, no_engine)
    sidecar = read_sidecar(engine)
    if sidecar.builder != "tensorrt":
        return ServedPlan(
            None, profile, f"{engine.name} is an engine of {sidecar.builder}, which DeepStream and Triton don't load"
        )
    return ServedPlan(engine, sidecar.profile, f"built with TensorRT {sidecar.builder_version}, which must run it")


def render(template: str, **content: Any) -> str:
    """The text of `templates/<template>` filled with `content`."""
    environment = Environment(
        loader=PackageLoader("trt_cls.serving"),
        autoescape=False,  # configuration files and Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)


def safe_name(stem: str) -> str:
    """`stem` as a name that needs no quoting in shells, URLs and configuration files."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-") or "model"


def check_servable(classes: Sequence[str], profile: Profile, separator: str, server: str) -> None:
    """Refuses what `server` can't do; its label file has `separator` between names, and no quotes.

    Raises:
        RequestError: the batches are larger than one image, or a class name can't stand in a label file.
    """
    if profile.minimum > 1:
        raise RequestError(
            f"--min-batch {profile.minimum}: {server} sends the images that have arrived, down to one; "
            "expected an engine that takes them; use --min-batch 1"
        )
    for name in classes:
        if any(mark in name for mark in (separator, "\n", "\r")):
            raise RequestError(
                f"class {name!r} can't stand in a label file of {server}, where {separator!r} separates the names; "
                "expected names without it and without line breaks; rename the class's folder and train again"
            )


def copy_plan(plan: Path, target: Path) -> None:
    """Copies a plan and its sidecar, so that `trt-cls` can run the copy too."""
    shutil.copyfile(plan, target)
    shutil.copyfile(sidecar_path(plan), sidecar_path(target))


@contextmanager
def filled(folder: Path, last: str) -> Iterator[Path]:
    """Yields an empty folder to fill; its files are then moved to `folder`, each atomically, `last` at the end.

    An error leaves `folder` as it was. Files of other names stay.
    """
    results_folder(folder)
    with TemporaryDirectory(dir=folder, prefix=".writing.") as name:
        draft = Path(name)
        yield draft
        files = [path for path in draft.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == last, path)):
            target = folder / path.relative_to(draft)
            target.parent.mkdir(exist_ok=True)
            with atomic(target) as beside:
                path.replace(beside)
