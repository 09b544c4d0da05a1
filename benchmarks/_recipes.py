"""The recipes of recipes.py, and the candidates that they are chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trt_cls.spec import loads
from trt_cls.spec.experiment import Experiment

NETWORKS = {
    "resnet18": 'arch: "resnet" n_layers: 18 use_batch_norm: true',
    "vit_tiny": 'arch: "timm/vit_tiny_patch16_224"',
    "convnext_atto": 'arch: "timm/convnext_atto"',
}
SPEC = """
model_config {{ {network} input_image_size: "3,64,64" }}
train_config {{
  train_dataset_path: "{data}/train"
  batch_size_per_gpu: 64 n_epochs: {epochs} n_workers: {workers} random_seed: {seed} preprocess_mode: "torch"
  enable_random_crop: false enable_center_crop: false enable_color_augmentation: false
  label_smoothing: 0.1 mixup_alpha: 0.0
  optimizer {{ sgd {{ momentum: 0.9 nesterov: true }} }}
  reg_config {{ type: "L2" scope: "Conv2D,Dense" weight_decay: 0.0005 }}
  lr_config {{ cosine {{ learning_rate: 0.1 soft_start: 0.2 }} }}
}}
extensions {{ crop_padding: 8 }}
"""
"""`today` of each network; of resnet18 it is specs/cifar10_resnet18.txt, for the others it is shorter."""
RATE, SOFT_START = "train_config.lr_config.cosine.learning_rate=", "train_config.lr_config.cosine.soft_start="
DECAY = "train_config.reg_config.weight_decay="
EMA, EMA_OF_FEW = "extensions.ema_decay=0.998", "extensions.ema_decay=0.992"
"""Over about three epochs, with batches of 64 and of 256."""
ERASING, CUTMIX = "extensions.random_erasing=", "extensions.cutmix_alpha=1.0"
TRIVIAL = "extensions.trivial_augment=true"
ADAMW = (
    f"train_config.reg_config.type=None extensions.optimizer.adamw.weight_decay=0.05 extensions.clip_grad_norm=1.0 "
    f"{SOFT_START}0.1 {RATE}"
)


class Recipe(NamedTuple):
    network: str
    name: str
    epochs: int
    changes: str = ""
    """What differs from SPEC, as for --set, with spaces between."""


RESIZING = "extensions.progressive_resizing."
PROGRESSIVE = f"{RESIZING}delay_fraction=0.5 {RESIZING}finetune_fraction=0.5 {RESIZING}size_increment=32"
"""Sides of 32 pixels, then of 64."""
GROWING = f"{RESIZING}delay_fraction=0.25 {RESIZING}finetune_fraction=0.25 {RESIZING}size_increment=16"
"""Of 32 for three eighths of the training, 48 for a quarter, then 64."""
LARGER = (
    f"{RESIZING}initial_scale=0.75 {RESIZING}delay_fraction=0.75 {RESIZING}finetune_fraction=0.25 "
    f"{RESIZING}size_increment=16"
)
"""Of 48 for three quarters of the training, then of 64."""
MUON = (
    "train_config.batch_size_per_gpu=256 train_config.reg_config.type=None extensions.optimizer.muon.weight_decay=0.5 "
    f"{RATE}0.012"
)
MUON_TRIVIAL = f"{EMA_OF_FEW} {GROWING} {TRIVIAL} {MUON} {SOFT_START}0.1"
OF_RESNET18 = {
    "today": (30, ""),
    "erasing0.5": (29, f"{EMA} {ERASING}0.5"),
    "progressive-plain": (40, f"{EMA} {PROGRESSIVE}"),
    "progressive": (40, f"{EMA} {PROGRESSIVE} {ERASING}0.25"),
    "progressive-erasing0.5": (40, f"{EMA} {PROGRESSIVE} {ERASING}0.5"),
    "progressive-larger": (38, f"{EMA} {LARGER} {ERASING}0.25"),
    "progressive-growing": (40, f"{EMA} {GROWING} {ERASING}0.25"),
    "growing-muon": (30, f"{EMA_OF_FEW} {GROWING} {ERASING}0.25 {MUON}"),
    "growing-muon-longer": (40, f"{EMA_OF_FEW} {GROWING} {ERASING}0.25 {MUON}"),
    "growing-muon-trivial": (30, f"{EMA_OF_FEW} {GROWING} {TRIVIAL} {MUON}"),
    "growing-muon-mixup": (30, f"{EMA_OF_FEW} {GROWING} {ERASING}0.25 {MUON} train_config.mixup_alpha=0.2"),
    "growing-muon-longer-trivial": (38, f"{EMA_OF_FEW} {GROWING} {TRIVIAL} {MUON}"),
    "growing-muon-longer-trivial-start0.1": (35, MUON_TRIVIAL),
    "growing-muon-longer-trivial-rate0.02": (35, f"{MUON_TRIVIAL} {RATE}0.02"),
    "growing-muon-longer-trivial-rate0.008": (35, f"{MUON_TRIVIAL} {RATE}0.008"),
    "growing-muon-longer-trivial-decay0.25": (35, f"{MUON_TRIVIAL} extensions.optimizer.muon.weight_decay=0.25"),
    "growing-muon-longer-trivial-erasing": (35, f"{MUON_TRIVIAL} {ERASING}0.25"),
    "growing-muon-longer-trivial-batch128": (
        33,
        f"{MUON_TRIVIAL} extensions.ema_decay=0.996 train_config.batch_size_per_gpu=128 {RATE}0.0085",
    ),
    "progressive-trivial": (40, f"{EMA} {PROGRESSIVE} {TRIVIAL}"),
    "progressive-cutmix": (40, f"{EMA} {PROGRESSIVE} {ERASING}0.25 {CUTMIX}"),
    "progressive-erasing0.5-rate0.05": (40, f"{EMA} {PROGRESSIVE} {ERASING}0.5 {RATE}0.05"),
    "progressive-erasing0.5-decay0.001": (40, f"{EMA} {PROGRESSIVE} {ERASING}0.5 {DECAY}0.001"),
}
"""Epochs, about as many as take the CPU time of today's (see --cost), and changes.

progressive-growing was tried with 41 in the choice, and those by Muon of 30 with 32; the longer ones are for fp32,
where an epoch by Muon costs less. growing-muon-longer was not in the choice; growing-muon-longer-trivial was, in bf16,
the ones after it in fp32, and the first of these also with 38 in bf16.
"""
OF_OTHERS = {
    "today": "",
    "sgd0.03": f"{RATE}0.03",
    "sgd0.01": f"{RATE}0.01",
    "adamw0.0005": f"{ADAMW}0.0005",
    "adamw0.001": f"{ADAMW}0.001",
    "adamw0.002": f"{ADAMW}0.002",
}
CANDIDATES = (
    *(Recipe("resnet18", name, *given) for name, given in OF_RESNET18.items()),
    *(Recipe("vit_tiny", name, 10, changes) for name, changes in OF_OTHERS.items()),
    *(Recipe("convnext_atto", name, 10, changes) for name, changes in OF_OTHERS.items()),
)
FINAL = {
    "resnet18": (
        "today",
        "progressive",
        "progressive-growing",
        "growing-muon",
        "growing-muon-longer",
        "growing-muon-mixup",
        "growing-muon-longer-trivial-start0.1",
        "growing-muon-longer-trivial-batch128",
    ),
    "vit_tiny": ("today", "adamw0.0005"),
    "convnext_atto": ("today", "adamw0.0005"),
}
"""By name; the first of a network is what the others are compared with."""
_named = {(recipe.network, recipe.name): recipe for recipe in CANDIDATES}
RECIPES = tuple(_named[network, name] for network, names in FINAL.items() for name in names)


def experiment_of(recipe: Recipe, data: Path, *, seed: int = 0, workers: int = 0, choosing: bool = False) -> Experiment:
    text = SPEC.format(network=NETWORKS[recipe.network], data=data, epochs=recipe.epochs, workers=workers, seed=seed)
    validated_on = "extensions.validation_split=0.2" if choosing else f"train_config.val_dataset_path={data}/test"
    return loads(text, overrides=[validated_on, *recipe.changes.split()])
