"""The spec's `extensions` block as frozen dataclasses, a part of the table in `experiment.py`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from trt_cls.spec.fields import ExactlyOne, above, at_least, between, interval, one_of, option, required

WEIGHT_DECAY = "share of a weight that a step subtracts, times the learning rate; none of norms and biases"


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """torchvision's RandAugment."""

    num_ops: int = option(2, "number of random operations on an image", at_least(1))
    magnitude: int = option(9, "strength of an operation", between(0, 30))


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """torchvision's RandomResizedCrop: a rectangle of the image is resized to the network's size."""

    min_scale: float = option(0.08, "smallest share of the image's area", interval(0, 1, "(]"))
    max_scale: float = option(1.0, "largest share of the image's area", interval(0, 1, "(]"))
    min_ratio: float = option(3 / 4, "smallest ratio of width to height", above(0))
    max_ratio: float = option(4 / 3, "largest ratio of width to height", above(0))


@dataclass(frozen=True, kw_only=True)
class ProgressiveResizing:
    """Smaller images at the beginning of the training, as in Composer's ProgressiveResizing."""

    initial_scale: float = option(0.5, "sides of the first images, as a share of the network's", interval(0, 1, "()"))
    delay_fraction: float = option(0.5, "share of the training before the images begin to grow", interval(0, 1))
    finetune_fraction: float = option(0.2, "share of the training, at its end, with whole images", interval(0, 1))
    size_increment: int = option(4, "pixels that the sides of smaller images are multiples of", at_least(1))


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """(1 - weight) · cross-entropy + weight · temperature² · KL divergence from the teacher's outputs."""

    teacher: str = required("model file (.safetensors, .onnx, .engine) with the same classes and preprocessing")
    temperature: float = option(4.0, "divisor of both models' logits before the softmax", above(0))
    weight: float = option(0.5, "weight of the teacher in the loss", interval(0, 1, "(]"))


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Quantization-aware training of pretrained_model_path; ranges are measured before training and stay fixed."""

    calibration_method: str = option(
        "auto",
        "how activation ranges are clipped: entropy (minimum KL divergence), percentile (99.99 %), minmax (not at "
        "all), auto (whichever of these changes the logits least)",
        one_of("auto", "entropy", "percentile", "minmax"),
    )
    calibration_batches: int = option(32, "number of calibration batches, each of 16 training images", at_least(1))
    keep: tuple[str, ...] = option((), "layers that are not quantized", one_of("first", "last"))


@dataclass(frozen=True, kw_only=True)
class ClassWeights:
    """Weights of the classes in the training loss; their mean over the training images is 1."""

    method: str = option(
        "inverse",
        "weight of a class of n training images: 1 / n (inverse), or (1 - beta) / (1 - beta^n), which grows no more "
        "where n is large (effective: Cui et al. 2019)",
        one_of("inverse", "effective"),
    )
    beta: float = option(0.999, "beta of method effective", interval(0, 1, "[)"))
    power: float = option(1.0, "power of these weights; below 1 they differ less", interval(0, 1, "(]"))


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    beta_1: float = option(0.9, "decay of the mean of gradients", interval(0, 1, "[)"))
    beta_2: float = option(0.999, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-8, "added to the denominator", above(0))
    weight_decay: float = option(0.05, WEIGHT_DECAY, interval(0, inf, "[)"))


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """LAMB as timm has it: Adam's step, scaled for each weight tensor by the ratio of the norms of weights and step."""

    beta_1: float = option(0.9, "decay of the mean of gradients", interval(0, 1, "[)"))
    beta_2: float = option(0.999, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-6, "added to the denominator", above(0))
    weight_decay: float = option(
        0.02, "share of a weight that is added to its step before it is scaled; none of norms and biases",
        interval(0, inf, "[)"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lion:
    """Lion: the sign of a mean of gradients is the step."""

    beta_1: float = option(0.9, "share of the mean in the step, the rest is the gradient", interval(0, 1, "[)"))
    beta_2: float = option(0.99, "decay of the mean of gradients", interval(0, 1, "[)"))
    weight_decay: float = option(0.5, WEIGHT_DECAY, interval(0, inf, "[)"))


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon for matrices and convolutions in the network, AdamW for norms, biases, embeddings and the last layer."""

    momentum: float = option(0.95, "Nesterov's momentum", interval(0, 1, "[)"))
    beta_1: float = option(0.9, "AdamW: decay of the mean of gradients", interval(0, 1, "[)"))
    beta_2: float = option(0.95, "AdamW: decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-8, "AdamW: added to the denominator", above(0))
    weight_decay: float = option(0.05, WEIGHT_DECAY, interval(0, inf, "[)"))


@dataclass(frozen=True, kw_only=True)
class ModernOptimizer(ExactlyOne):
    """An optimizer that TAO does not have."""

    adamw: AdamW | None = option(None, "AdamW")
    lamb: Lamb | None = option(None, "LAMB, for large batches")
    lion: Lion | None = option(None, "Lion; takes a third to a tenth of AdamW's learning rate")
    muon: Muon | None = option(None, "Muon, with AdamW's learning rate")


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Options that TAO does not have; all are off by default."""

    validation_split: float = option(
        0.0,
        "share of each class's training images held out to validate and to evaluate on",
        interval(0, 1, "[)"),
    )
    labels: str = option(
        "",
        "multi-label training: name of the CSV file in each dataset's folder with a row path,label|label for each "
        "image, in place of class folders, as in labels.csv; the loss is binary cross-entropy",
    )
    threshold_precision: float = option(
        0.0,
        "with labels: a label's threshold is the lowest with this precision on half of the validation images; 0: the "
        "one with the highest F1",
        interval(0, 1),
    )
    crop_padding: int = option(
        0,
        "random shift while training: the image is padded by reflection with this many pixels on each side, then "
        "cropped to the network's size at a random position; without enable_random_crop",
        at_least(0),
    )
    random_resized_crop: RandomResizedCrop | None = option(
        None, "RandomResizedCrop on each training image; without enable_random_crop and crop_padding"
    )
    rand_augment: RandAugment | None = option(None, "RandAugment on each training image")
    trivial_augment: bool = option(False, "TrivialAugment on each training image; without rand_augment")
    repeated_augment: int = option(
        1, "times that each image comes in a batch, augmented anew; an epoch takes as many fewer images", at_least(1)
    )
    random_erasing: float = option(
        0.0, "probability that a random rectangle (2 to 33 % of the area) of a training image is erased", interval(0, 1)
    )
    cutmix_alpha: float = option(
        0.0,
        "CutMix: a rectangle of each image is replaced by that of the image before it in the batch, the share of its "
        "area drawn from Beta(alpha, alpha); with mixup_alpha, one of the two is drawn for each batch; 0: off",
        interval(0, 1),
    )
    progressive_resizing: ProgressiveResizing | None = option(
        None, "trains with smaller images at first, in less time; for networks that take images of any size"
    )
    class_weights: ClassWeights | None = option(None, "weights of the classes in the training loss, by their images")
    balanced_sampling: bool = option(
        False,
        "every epoch draws the classes equally often, as many images in all as without: few images come several times, "
        "augmented anew, and of many a part comes; without class_weights",
    )
    focal_gamma: float = option(
        0.0,
        "focal loss: each class's part of the cross-entropy is multiplied by (1 - its probability)^gamma; 0: off",
        interval(0, inf, "[)"),
    )
    bce_loss: bool = option(
        False,
        "binary cross-entropy, for each class apart, in the place of cross-entropy; without distillation, "
        "class_weights and focal_gamma",
    )
    optimizer: ModernOptimizer | None = option(
        None,
        "takes the place of train_config.optimizer, with the rates of lr_config; exactly one of "
        f"{', '.join(ModernOptimizer.__dataclass_fields__)}; reg_config has type None",
    )
    layer_decay: float = option(
        1.0, "factor of the learning rate from each layer to the one before it; the last layer has all of it",
        interval(0, 1, "(]"),
    )  # fmt: skip
    drop_path: float = option(
        0.0,
        "stochastic depth: probability that a residual branch of the last block is left out of a step, less in the "
        "blocks before; for EfficientNets, and networks of torchvision and timm that have it; 0: the network's default",
        interval(0, 1, "[)"),
    )
    gradient_checkpointing: bool = option(
        False,
        "computes activations again in the backward pass: less memory, more time, the same result; for built-in "
        "networks and those of timm, without model_parallelism",
    )
    warm_up_steps: int = option(
        0, "steps of the optimizer in which the schedule's rate is reached, linearly; without soft_start", at_least(0)
    )
    ema_decay: float = option(
        0.0,
        "decay of the exponential moving average of weights and batch normalization statistics that validation and "
        "checkpoints use; at most (1 + n) / (10 + n) in step n of the optimizer; 0: off",
        interval(0, 1, "[)"),
    )
    clip_grad_norm: float = option(
        0.0,
        "maximum norm of the gradient of the loss without penalty, over all weights; 0: off",
        interval(0, inf, "[)"),
    )
    accumulate_steps: int = option(
        1, "batches whose gradients are averaged for one step of the optimizer and the schedule", at_least(1)
    )
    best_metric: str = option(
        "top_1",
        "what chooses the best epoch, in validation; with labels mAP by default",
        one_of("top_1", "loss", "balanced_accuracy", "macro_f1", "mAP"),
    )
    early_stopping_patience: int = option(
        0, "stop after this many epochs without a better best_metric; 0: off", at_least(0)
    )
    distillation: Distillation | None = option(None, "knowledge distillation from another model")
    average_checkpoints: int = option(
        0,
        "number of last epochs whose weights are averaged into weights/averaged.safetensors; batch normalization "
        "statistics are computed again over the training images; 0: off",
        at_least(0),
    )
    microbatches: int = option(
        1,
        "parts that a batch is split into, so that the devices of model_parallelism work at the same time; batch "
        "normalization sees each part alone",
        at_least(1),
    )
    quantization: Quantization | None = option(None, "quantization-aware training, for export to INT8")


NO_EXTENSIONS = Extensions()
