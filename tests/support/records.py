"""Model configurations of the reference records."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trt_cls.models import build
from trt_cls.models.network import Network
from trt_cls.spec.experiment import Activation, ModelConfig

OPTIONS = {
    "bn": "use_batch_norm",
    "bias": "use_bias",
    "pool": "use_pooling",
    "proj": "all_projections",
    "head": "retain_head",
}
"""Short names of options in records."""


def config(record: dict[str, Any], **changes: Any) -> ModelConfig:
    """The configuration of a record with its options at the top or below "options"; null means unset."""
    options = record.get("options") or record
    flags = {name: bool(options.get(short, options.get(name))) for short, name in OPTIONS.items()}
    size = record["input_size"]
    given = {
        "arch": record["arch"],
        "n_layers": record["n_layers"] or 18,
        "input_image_size": size if isinstance(size, str) else ",".join(map(str, size)),
        "dropout": options.get("dropout") or 0.0,
        "activation": activation(options.get("act")),
    }
    return ModelConfig(**(given | flags | changes))


def activation(kind: str | None) -> Activation | None:
    return Activation(activation_type=kind) if kind else None


def outline(model_config: ModelConfig, num_classes: int = 10, *, tao_pooling: bool = False) -> Network:
    """The network without memory for its weights, which nobody draws: that is most of what a build takes."""
    with ExitStack() as stack:
        for layer in (nn.Conv2d, nn.Linear, _NormBase):
            stack.enter_context(patch.object(layer, "reset_parameters", lambda module: None))
        for draw in ("xavier_uniform_", "trunc_normal_"):
            stack.enter_context(patch.object(nn.init, draw, lambda weight, **_: weight))
        stack.enter_context(torch.device("meta"))
        return build(model_config, num_classes, tao_pooling=tao_pooling)


def label(record: dict[str, Any]) -> str:
    """A readable test id."""
    options = record["options"]
    on = [short for short in OPTIONS if options[short]] + ([options["act"]] if options["act"] else [])
    depth, size = record["n_layers"] or "", "x".join(map(str, record["input_size"]))
    return f"{record['arch']}{depth}-{size}-{'+'.join(on) or 'plain'}"
