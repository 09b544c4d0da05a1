"""What of a spec has another result here than in TAO, and which of its files are encrypted, for `spec check`.

Does not know: differences that depend on the images, see docs/differences-from-tao.md, which lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import PurePath

from trt_cls.spec.experiment import Experiment

ENCRYPTED = (".tlt", ".etlt")
"""Suffixes of models that TAO encrypts."""
WARM_UP_START = 3e-4

Meets = Callable[[Experiment, str], object]
"""Whether the spec, with its text, meets a difference."""


def _step(e: Experiment, _: str) -> object:
    return e.train_config and e.train_config.lr_config.step


def _cosine(e: Experiment, _: str) -> object:
    return e.train_config and (cosine := e.train_config.lr_config.cosine) and cosine.soft_start


def _anneal(e: Experiment, _: str) -> object:
    anneal = e.train_config and e.train_config.lr_config.soft_anneal
    return anneal and anneal.soft_start and anneal.learning_rate < WARM_UP_START


def _omitted(e: Experiment, text: str) -> object:
    block = e.train_config.optimizer if e.train_config and not e.extensions.optimizer else None
    chosen = [option for option in vars(block).values() if option] if block else []
    names = [field.name for option in chosen for field in fields(option) if field.default and field.name != "lr"]
    return any(name not in text for name in names)


def _of(arch: str, name: str) -> Meets:
    return lambda e, _: e.model_config.arch == arch and getattr(e.model_config, name)


DIFFERENCES: tuple[tuple[str, Meets, str], ...] = (
    ("`label_smoothing`", lambda e, _: e.train_config and e.train_config.label_smoothing,
     "smooths the targets; TAO's code ignores it"),
    ("`lr_config.step`", _step, "drops by gamma after each step_size percent; TAO's code decays continuously"),
    ("`lr_config.cosine` with `soft_start`", _cosine, "ends at min_lr_ratio · learning_rate; TAO's code above it"),
    ("`lr_config.soft_anneal`", _anneal, "warms up from learning_rate; TAO's code from 3e-4, which is higher"),
    ("omitted optimizer fields", _omitted, "take the documented defaults; TAO's code takes 0"),
    ('`reg_config.scope: "Conv2D, Dense"`', lambda e, _: e.train_config and ", " in e.train_config.reg_config.scope,
     "regularizes both; in TAO's code the space drops the second"),
    ("`resnet` with `use_pooling`", _of("resnet", "use_pooling"), "averages the map; TAO's code its upper left 4×4"),
    ("`resnet` with `activation`", _of("resnet", "activation"), "is used; TAO's code always takes relu"),
    ("`efficientnet_b0` with `activation`", _of("efficientnet_b0", "activation"), "is used; TAO's always takes swish"),
    ("`squeezenet` with `dropout`", _of("squeezenet", "dropout"), "is used; TAO's code always takes 0.001"),
    ("running variance of batch normalization", lambda e, _: e.model_config.use_batch_norm,
     "comes from the unbiased variance of a batch; in TAO from the biased one"),
    ('`preprocess_mode: "torch"`', lambda e, _: e.train_config and e.train_config.preprocess_mode == "torch",
     "divides by .229, .224, .225; TAO's code by .224 in every channel"),
    ("`top_k` omitted", lambda e, text: e.eval_config and "top_k" not in text, "is 5 at most; 0 in TAO's code"),
)  # fmt: skip
"""Row of docs/differences-from-tao.md; whether a spec meets it; what is done here."""


def differences(experiment: Experiment, text: str) -> list[str]:
    """A line for each documented difference that the spec `text` meets."""
    return [f"{row.replace('`', '')}: {here}" for row, meets, here in DIFFERENCES if meets(experiment, text)]


def encrypted(path: str) -> str:
    """What to do about a model that TAO encrypted; empty for any other path."""
    if PurePath(path).suffix.lower() not in ENCRYPTED:
        return ""
    return (
        "TAO encrypted it, and only TAO opens it: take the .hdf5 of the same training (TAO 5 saves it beside), or "
        "load it there and save it as .hdf5; then trt-cls import-tao FILE.hdf5 -o FILE.safetensors"
    )


def encrypted_files(experiment: Experiment) -> Iterator[str]:
    """A line for each file of the spec that TAO encrypted."""
    train, evaluation = experiment.train_config, experiment.eval_config
    named = {
        "train_config.pretrained_model_path": train.pretrained_model_path if train else "",
        "eval_config.model_path": evaluation.model_path if evaluation else "",
    }
    return (f'{field}: "{path}": {hint}' for field, path in named.items() if (hint := encrypted(path)))
