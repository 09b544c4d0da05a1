"""Pages from templates: style and script go inside, and everything that is put in is escaped.

What is not known here: what a page says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page(template: str, **content: Any) -> str:
    """The HTML of `templates/<template>` filled with `content`."""
    environment = Environment(
        loader=PackageLoader("trt_cls.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**content)


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1, as in "97.5 %"."""
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%")


def common_folder(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds all `paths`."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def shown(path: Path, folder: Path | None = None) -> str:
    """`path`, below `folder` where one is given, as text that can be written as UTF-8 whatever the file is called."""
    text = os.path.relpath(path, folder) if folder else str(path)
    return text.encode("utf-8", "replace").decode("utf-8")
