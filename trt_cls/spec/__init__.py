"""Spec files: text → validated `Experiment`, and back.

Knows the fields, their defaults, allowed values and relations. Does not know: torch, files other than specs and the
paths they name. Begin with `experiment.py`, the table of all fields; `loader.py` shows the order of reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_cls.spec.experiment import Experiment

__all__ = ["load", "loads", "show"]


def load(
    path: str | Path, *, overrides: Sequence[str] = (), needs: Sequence[str] = (), paths: bool = True
) -> Experiment:
    """The experiment in a spec file.

    Args:
        overrides: `field=value` texts, as given to `--set`.
        needs: sections that must be there ("train_config", "eval_config").
        paths: whether the folders and files that these sections name must exist.

    Raises:
        SpecError: the file can't be read, or is not valid; all problems are listed.
    """
    from trt_cls.spec.loader import read_text

    return loads(read_text(path), overrides=overrides, needs=needs, paths=paths, name=str(path))


def loads(
    text: str, *, overrides: Sequence[str] = (), needs: Sequence[str] = (), paths: bool = False, name: str = "<spec>"
) -> Experiment:
    """The experiment in a text; `name` stands for the file in messages. See `load`."""
    from trt_cls.spec.loader import experiment_from_text

    files_of = needs if paths else ()
    return experiment_from_text(text, name, overrides=overrides, needs=needs, files_of=files_of)


def show(experiment: Experiment, *, secrets: bool = False) -> str:
    """The experiment as a spec with all fields; keys, those of URLs too, only with `secrets`; `loads` reads it back."""
    from trt_cls.spec.reference import text_from_experiment

    return text_from_experiment(experiment, secrets=secrets)
