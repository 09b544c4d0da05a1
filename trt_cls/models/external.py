"""Classification networks of torchvision and timm: the library's own modules, so that their state dicts load by name.

The spec sets their input size, channels and number of classes; their weights are random, or the library's pretrained.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, hub, nn

from trt_cls.errors import ArtefactError, RequestError, TrtClsError, did_you_mean, one_line, require
from trt_cls.models.network import require_answers
from trt_cls.spec.experiment import ModelConfig

InputShape = tuple[int, int, int]

DROPS_OF_TIMM = "drop_path_rate"

NO_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}
"""For networks that return more than the logits in training."""


def build(config: ModelConfig, num_classes: int, drop_path: float = 0.0) -> nn.Module:
    """See `trt_cls.models.build`."""
    library, _, name = config.arch.partition("/")
    make, drops = (
        (_from_torchvision, "stochastic_depth_prob") if library == "torchvision" else (_from_timm, DROPS_OF_TIMM)
    )
    try:
        module = make(name, config.input_shape, num_classes, **({drops: drop_path} if drop_path else {}))
        require_answers(module, config.input_shape, num_classes)
    except TrtClsError:
        raise
    except Exception as error:  # for a size that a network can't take, libraries raise errors of any kind
        if drop_path and isinstance(error, TypeError) and drops in str(error):
            raise RequestError(
                f"extensions.drop_path: {drop_path}, but {config.arch} has no stochastic depth; expected a network "
                "that has it, such as timm/vit_tiny_patch16_224; leave the field out"
            ) from error
        raise RequestError(
            f"{config.arch} can't be built for {num_classes} classes and input_image_size "
            f'"{config.input_image_size}" ({one_line(error)}); expected a size that it takes; '
            "set model_config.input_image_size or choose another arch"
        ) from error
    return module


def hub_weights(config: ModelConfig) -> Mapping[str, Tensor]:
    """The pretrained weights that the network's library offers, from its cache or downloaded.

    Raises:
        ArtefactError: what the cache has is damaged.
        RequestError: the library offers none.
        TrtClsError: the download failed.
        MissingDependency: the library is not installed.
    """
    library, _, name = config.arch.partition("/")
    try:
        return _torchvision_weights(name) if library == "torchvision" else _timm_weights(name, config.input_shape)
    except TrtClsError:
        raise
    except Exception as error:  # a hub's client raises errors of its own when there is no network
        raise TrtClsError(
            f"the weights of {config.arch} can't be downloaded from {library}'s hub ({one_line(error)}); expected a "
            "network connection; or download the file elsewhere and name it as train_config.pretrained_model_path"
        ) from error


def offers_weights(arch: str) -> bool:
    """Whether the library of a network has pretrained weights for it."""
    library, _, name = arch.partition("/")
    try:
        if library == "torchvision":
            return len(import_module("torchvision.models").get_model_weights(name)) > 0
        return bool(import_module("timm").is_model_pretrained(name))
    except Exception:  # the library or the network is not there
        return False


def has_cached_weights(arch: str) -> bool:
    """Whether the pretrained weights of a network are on this machine; nothing is downloaded."""
    library, _, name = arch.partition("/")
    try:
        if library == "torchvision":
            url = import_module("torchvision.models").get_model_weights(name).DEFAULT.url
            return _torchs_cache(url).is_file()
        return _hubs_cache(name) is not None
    except Exception:  # the library or the network is not there, or another version is
        return False


def _torchvision_weights(name: str) -> Mapping[str, Tensor]:
    models = require("torchvision", f'arch "torchvision/{name}"', "train").models
    weights = models.get_model_weights(name).DEFAULT
    cached = _torchs_cache(weights.url)
    _require_intact(cached, cached.stem.rpartition("-")[2])  # torch compares what it downloads, not what it has
    tensors: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return tensors


def _torchs_cache(url: str) -> Path:
    """The file that torch.hub keeps of `url`."""
    return Path(hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _hubs_cache(name: str) -> Path | None:
    """The file that the Hugging Face hub keeps of a network of timm, if it is here: named by its SHA-256."""
    repository = import_module("timm").get_pretrained_cfg(name).hf_hub_id
    found = repository and import_module("huggingface_hub").try_to_load_from_cache(repository, "model.safetensors")
    return Path(found).resolve() if isinstance(found, str) else None


def _require_intact(path: Path, digest: str) -> None:
    """Refuses a file of a cache whose SHA-256 does not begin with `digest`."""
    if not path.is_file() or not re.fullmatch("[0-9a-f]{8,16}|[0-9a-f]{64}", digest):
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(digest):
        raise ArtefactError(
            f"{path}: is damaged: its SHA-256 begins with {found[: len(digest)]}; expected {digest}; remove it, and it "
            "is downloaded again"
        )


def _timm_weights(name: str, input_shape: InputShape) -> Mapping[str, Tensor]:
    timm = require("timm", f'arch "timm/{name}"', "timm")
    if not timm.is_model_pretrained(name):
        raise RequestError(f"timm offers no weights for {name}; expected a file; leave pretrained_model_path out")
    if cached := _hubs_cache(name):
        _require_intact(cached, cached.name)
    overlay = {"input_size": input_shape}
    trained = timm.create_model(name, pretrained=True, in_chans=input_shape[0], pretrained_cfg_overlay=overlay)
    tensors: Mapping[str, Tensor] = trained.state_dict()
    return tensors


def _from_torchvision(name: str, input_shape: InputShape, num_classes: int, **options: Any) -> nn.Module:
    models = require("torchvision", f'arch "torchvision/{name}"', "train").models
    _require_known("torchvision", name, models.list_models(module=models))
    channels, *size = input_shape
    if channels != 3:
        raise ValueError(f"{channels} channel, where torchvision's networks take 3 and timm's any number")
    if name in ("googlenet", "inception_v3"):
        options |= NO_AUXILIARY_HEADS
    elif name.startswith("vit_"):
        options["image_size"] = size[0]
    elif name.startswith("maxvit"):
        options["input_size"] = tuple(size)
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return module


def _from_timm(name: str, input_shape: InputShape, num_classes: int, **options: Any) -> nn.Module:
    timm = require("timm", f'arch "timm/{name}"', "timm")
    _require_known("timm", name, timm.list_models())
    # Networks with a fixed input size, such as ViT, take it from the overlay.
    overlay = {"input_size": input_shape}
    channels = input_shape[0]
    module: nn.Module = timm.create_model(
        name, num_classes=num_classes, in_chans=channels, pretrained_cfg_overlay=overlay, **options
    )
    return module


def _require_known(library: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise RequestError(
            f'arch "{library}/{name}" found, expected one of the {len(known)} classification networks of this '
            f"{library}{did_you_mean(name, known)}"
        )
