"""What of a spec has another result here than in TAO, and which of its files are encrypted, for `spec check`.

Does not know: differences that depend on the images, see docs/differences-from-tao.md, which lists all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_cls.spec.experiment import ModelConfig, TrainConfig

ENCRYPTED = (".tlt", ".etlt")
"""Suffixes of models that TAO encrypts."""

Concerns = Callable[["ModelConfig", "TrainConfig", str], object]
"""Whether a difference concerns a spec, which is given with its text."""


def _omitted(model: ModelConfig, train: TrainConfig, text: str) -> object:
    chosen = [option for option in vars(train.optimizer).values() if option]
    names = [field.name for option in chosen for field in fields(option) if field.default and field.name != "lr"]
    return any(name not in text for name in names)


def _of(arch: str, name: str) -> Concerns:
    return lambda model, train, text: model.arch == arch and getattr(model, name)


DIFFERENCES: tuple[tuple[str, Concerns, str], ...] = (
    ("`label_smoothing`", lambda m, t, _: t.label_smoothing, "smooths the targets; TAO's code ignores it"),
    ("`lr_config.step`", lambda m, t, _: t.lr_config.step,
     "drops by gamma after each step_size percent; TAO's code decays continuously"),
    ("`lr_config.cosine` with `soft_start`", lambda m, t, _: (c := t.lr_config.cosine) and c.soft_start,
     "ends at min_lr_ratio · learning_rate; TAO's code above it"),
    ("`lr_config.soft_anneal`",
     lambda m, t, _: (a := t.lr_config.soft_anneal) and a.soft_start and a.learning_rate < 3e-4,
     "warms up from learning_rate; TAO's code from 3e-4, which is higher"),
    ("omitted optimizer fields", _omitted, "take the documented defaults; TAO's code takes 0"),
    ('`reg_config.scope: "Conv2D, Dense"`', lambda m, t, _: ", " in t.reg_config.scope,
     "regularizes both; in TAO's code the space drops the second"),
    ("`resnet` with `use_pooling`", _of("resnet", "use_pooling"), "averages the map; TAO's code its upper left 4×4"),
    ("`resnet` with `activation`", _of("resnet", "activation"), "is used; TAO's code always takes relu"),
    ("`efficientnet_b0` with `activation`", _of("efficientnet_b0", "activation"), "is used; TAO's always takes swish"),
    ("`squeezenet` with `dropout`", _of("squeezenet", "dropout"), "is used; TAO's code always takes 0.001"),
    ("running variance of batch normalization", lambda m, t, _: m.use_batch_norm,
     "comes from the unbiased variance of a batch; in TAO from the biased one"),
    ('`preprocess_mode: "torch"`', lambda m, t, _: t.preprocess_mode == "torch",
     "divides by .229, .224, .225; TAO's code by .224 in every channel"),
    ("`top_k` omitted", lambda m, t, text: "eval_config" in text and "top_k" not in text, "is 5 at most; 0 in TAO's"),
)  # fmt: skip
"""Row of docs/differences-from-tao.md; whether it concerns a spec; what is done here."""


def differences(model: ModelConfig, train: TrainConfig, text: str) -> list[str]:
    """A line for each documented difference that concerns the spec `text`."""
    return [f"{row.replace('`', '')}: {here}" for row, concerns, here in DIFFERENCES if concerns(model, train, text)]


def encrypted(path: str) -> str:
    """What to do about a model that TAO encrypted; empty for any other path."""
    if PurePath(path).suffix.lower() not in ENCRYPTED:
        return ""
    return (
        "TAO encrypted it, and only TAO opens it: take the .hdf5 of the same training (TAO 5 saves it beside), or "
        "load it there and save it as .hdf5; then trt-cls import-tao FILE.hdf5 -o FILE.safetensors"
    )


def encrypted_files(text: str, overrides: Sequence[str]) -> Iterator[str]:
    """A line for each file that TAO encrypted, of those that the spec `text` names, which may have mistakes."""
    without_comments = re.sub(r"""("[^"\n]*"|'[^'\n]*')|#[^\n]*""", r"\1", text)
    set_to = {}
    for override in overrides:
        field, _, path = override.partition("=")
        set_to[field.rpartition(".")[2]] = path.strip("\"'")
    named = re.findall(r"""(\w+)\s*:\s*["']([^"'\n]+)["']""", without_comments)
    kept = [(field, path) for field, path in named if field not in set_to]
    return (
        f'{field}: "{path}": {hint}'
        for field, path in dict.fromkeys([*kept, *set_to.items()])
        if (hint := encrypted(path))
    )
