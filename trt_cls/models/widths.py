"""Changes the numbers of channels of the layers of a built network, as pruning needs; sets no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from trt_cls.errors import one_line

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def resize(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Resizes layers for tensors of these `shapes`, by their names in the state dict; returns the layers that changed.

    Only convolutions (except their kernel size), dense layers and batch normalizations change. New weights are zeros.
    Does not check whether the layers still fit each other; `require_answers` does.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)]
    return tuple(name for name, layer in layers if _resize_layer(layer, name, shapes))


def require_answers(module: nn.Module, input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Runs the network on one image.

    Raises:
        ValueError: its layers do not fit each other, or its output is not one logit per class.
    """
    training = module.training
    try:
        with torch.no_grad():
            answer = module.eval()(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"its layers do not fit each other or the input: {one_line(error)}") from error
    finally:
        module.train(training)
    if not isinstance(answer, torch.Tensor) or answer.shape != (1, num_classes):
        found = list(answer.shape[1:]) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ValueError(f"it gives {found} logits for {num_classes} classes")


def _resize_layer(layer: nn.Module, name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    changed = False
    for key, old in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        shape = shapes.get(f"{name}.{key}")
        if shape is None or tuple(shape) == old.shape or len(shape) != old.dim() or tuple(shape[2:]) != old.shape[2:]:
            continue
        new = old.new_zeros(tuple(shape))
        setattr(layer, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        changed = True
    if changed:
        _set_numbers(layer)
    return changed


def _set_numbers(layer: nn.Module) -> None:
    """Sets the size attributes of a layer from its tensors."""
    if isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.weight.shape[:2]
        if 1 < layer.groups == layer.in_channels:
            layer.groups = outputs
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(layer.running_mean if layer.running_mean is not None else layer.weight)
