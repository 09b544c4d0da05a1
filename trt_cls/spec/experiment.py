"""The experiment as frozen dataclasses: the one table of defaults, ranges and help.

The classes mirror the messages of `experiment.proto` field by field, so that a path in a spec file
(`train_config.optimizer.sgd.lr`) is the path of the attribute. What relates two fields is checked in `validate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from math import inf
from typing import Any

from trt_cls.spec.allowed import (
    ANYTHING,
    SIZES,
    Allowed,
    above,
    at_least,
    between,
    finite,
    interval,
    judged_with_others,
    one_of,
)
from trt_cls.spec.architectures import ARCHITECTURES, LIBRARIES


def option(default: Any, description: str, allowed: Allowed = ANYTHING, *, secret: bool = False) -> Any:
    """A field that takes `default` when the spec leaves it out; a callable default is a factory.

    The value of a `secret` field is neither shown in a message nor written to a results folder.
    """
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    if default is MISSING:
        given = {}
    return field(**given, repr=not secret, metadata={"help": description, "allowed": allowed, "secret": secret})


def required(description: str, allowed: Allowed = ANYTHING) -> Any:
    """A field that the spec must give."""
    return option(MISSING, description, allowed)


@dataclass(frozen=True, kw_only=True)
class BatchNormConfig:
    """Batch normalisation; `momentum` is the share of the running statistics that is kept (PyTorch's is 1 minus it)."""

    momentum: float = option(0.9, "share of the running statistics kept at each step", interval(0, 1, "()"))
    epsilon: float = option(1e-5, "added to the variance", interval(0, 0.1, "()"))


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The activation function, where a family lets it be chosen."""

    activation_type: str = required(
        "activation function; left out: the family's own", one_of("relu", "swish", "mish", "leaky_relu")
    )
    activation_parameters: Mapping[str, float] = option(
        dict, "accepted for compatibility; no activation here has any", finite()
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    arch: str = option(
        "resnet",
        "architecture family, or a network of torchvision or timm",
        judged_with_others("one of " + ", ".join((*ARCHITECTURES, *(f"{library}/NAME" for library in LIBRARIES)))),
    )
    n_layers: int = option(
        18,
        "depth, for families that come in several",
        judged_with_others("; ".join(f"{a.name}: {a.depths_text}" for a in ARCHITECTURES.values() if a.depths)),
    )
    input_image_size: str = option(
        "3,224,224",
        "what the network sees: channels, height, width",
        judged_with_others(f'"C,H,W": C 1 or 3, {SIZES}, as in "3,224,224"'),
    )
    resize_interpolation_method: str = option(
        "BILINEAR", "resize filter, always antialiased", one_of("BILINEAR", "BICUBIC")
    )
    use_batch_norm: bool = option(False, "batch normalisation after each convolution")
    use_bias: bool = option(False, "bias in convolutions")
    use_pooling: bool = option(False, "pooling in place of strided convolutions")
    all_projections: bool = option(False, "a 1x1 convolution in every shortcut, where a family has shortcuts")
    retain_head: bool = option(False, "the classifier of the original paper in place of average pooling and one layer")
    freeze_bn: bool = option(False, "batch normalisation keeps its running statistics while training")
    freeze_blocks: tuple[int, ...] = option(
        (), "blocks whose convolutions are not trained", judged_with_others("integers: the family's blocks")
    )
    dropout: float = option(0.0, "dropout rate in the head (vgg, squeezenet)", interval(0, 1, "[)"))
    batch_norm_config: BatchNormConfig = option(BatchNormConfig, "constants of batch normalisation")
    activation: Activation | None = option(None, "activation function; left out: the family's own")
    byom_model: str = option(
        "", "TAO's bring-your-own-model file; refused: evaluate and infer take the network as an ONNX file"
    )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = (int(number) for number in self.input_image_size.split(","))
        return channels, height, width


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    momentum: float = option(0.9, "momentum", interval(0, 1, "[)"))
    decay: float = option(0.0, "documented as without use", interval(0, 1))
    nesterov: bool = option(False, "Nesterov's momentum")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    beta_1: float = option(0.9, "decay of the mean of gradients", interval(0, 1, "[)"))
    beta_2: float = option(0.999, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-7, "added to the denominator", above(0))
    decay: float = option(0.0, "documented as without use", interval(0, 1))


@dataclass(frozen=True, kw_only=True)
class Rmsprop:
    """RMSprop, without momentum."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    rho: float = option(0.9, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-7, "added to the denominator", above(0))
    decay: float = option(0.0, "documented as without use", interval(0, 1))


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Exactly one of the three is set."""

    sgd: Sgd | None = option(None, "stochastic gradient descent")
    adam: Adam | None = option(None, "Adam")
    rmsprop: Rmsprop | None = option(None, "RMSprop")


@dataclass(frozen=True, kw_only=True)
class RegConfig:
    """The penalty on weights."""

    type: str = required("penalty: sum of |w| (L1) or of w² (L2), times weight_decay", one_of("L1", "L2", "None"))
    scope: str = option(
        "Conv2D,Dense", "layer types that are penalised", judged_with_others("Conv2D, Dense or both, comma-separated")
    )
    weight_decay: float = option(
        0.0, "factor of the penalty; required unless type is None", finite("a number in (0, 1), or any with type None")
    )


@dataclass(frozen=True, kw_only=True)
class StepLr:
    """learning_rate · gamma^k after k drops."""

    learning_rate: float = required("learning rate at the start, times the number of GPUs", above(0))
    step_size: float = required(
        "percent of the training after which the rate drops, again and again", interval(0, 100, "()")
    )
    gamma: float = required("factor of a drop", interval(0, 1, "()"))


@dataclass(frozen=True, kw_only=True)
class SoftAnnealLr:
    """Linear warm-up, then divided at each point."""

    learning_rate: float = required("learning rate after warm-up, times the number of GPUs", above(0))
    soft_start: float = option(0.0, "share of the training spent on warm-up", interval(0, 1, "[)"))
    annealing_divider: float = option(10.0, "divisor at each point", above(1))
    annealing_points: tuple[float, ...] = option(
        (), "shares of the training at which the rate drops, in order", interval(0, 1, "()")
    )


@dataclass(frozen=True, kw_only=True)
class CosineLr:
    """Linear warm-up, then half a cosine down to min_lr_ratio · learning_rate."""

    learning_rate: float = required("highest learning rate, times the number of GPUs", above(0))
    min_lr_ratio: float = option(0.0, "lowest rate as a share of the highest", interval(0, 1, "[)"))
    soft_start: float = option(0.0, "share of the training spent on warm-up", interval(0, 1, "[)"))


@dataclass(frozen=True, kw_only=True)
class LrConfig:
    """Exactly one of the three is set."""

    step: StepLr | None = option(None, "drops by a factor at equal distances")
    soft_anneal: SoftAnnealLr | None = option(None, "warm-up, then drops at given points")
    cosine: CosineLr | None = option(None, "warm-up, then a cosine")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    enabled: bool = option(False, "log to Weights & Biases")
    key: str = option(
        "",
        "API key; not written to experiment_spec.txt: with that file, set WANDB_API_KEY or run wandb login",
        secret=True,
    )
    project: str = option("", "project")
    entity: str = option("", "user or team")
    reinit: bool = option(False, "allow several runs in one process")
    name: str = option("", "name of the run")
    tags: tuple[str, ...] = option((), "tags of the run")
    wandb_dir: str = option("", "folder for local files")
    notes: str = option("", "notes on the run")
    mode: str = option("ONLINE", "where logs go", one_of("ONLINE", "OFFLINE", "DISABLED"))


@dataclass(frozen=True, kw_only=True)
class ClearmlConfig:
    """ClearML."""

    project: str = option("", "project")
    task: str = option("", "task")
    tags: tuple[str, ...] = option((), "tags of the task")
    reuse_last_task_id: bool = option(False, "write into the last task")
    continue_last_task: bool = option(False, "go on with the last task")
    deferred_init: bool = option(False, "start the task in the background")


@dataclass(frozen=True, kw_only=True)
class Visualizer:
    """What TensorBoard shows beside the curves."""

    enabled: bool = option(False, "write images and histograms")
    num_images: int = option(3, "training images shown an epoch", at_least(0))
    weight_histograms: bool = option(False, "histograms of the weights each epoch")
    wandb_config: WandbConfig | None = option(None, "Weights & Biases")
    clearml_config: ClearmlConfig | None = option(None, "ClearML")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training."""

    train_dataset_path: str = required("folder with one sub-folder of images per class")
    val_dataset_path: str = required("the same, for validation after each epoch")
    pretrained_model_path: str = option(
        "", 'model file whose weights the training starts from; "hub": those that torchvision or timm offers'
    )
    batch_size_per_gpu: int = option(32, "images a step on each GPU", at_least(1))
    n_epochs: int = option(120, "passes over the training images", at_least(1))
    n_workers: int = option(10, "processes that load images; 0: the main process", at_least(0))
    random_seed: int = option(42, "seed of everything random", at_least(0))
    enable_random_crop: bool = option(True, "random crop while training")
    enable_center_crop: bool = option(True, "center crop for validation")
    enable_color_augmentation: bool = option(True, "random hue, saturation and contrast, with random crop")
    disable_horizontal_flip: bool = option(False, "no random mirroring")
    label_smoothing: float = option(0.1, "share of the label spread over all classes", interval(0, 1, "[)"))
    mixup_alpha: float = option(0.2, "mixup's Beta(alpha, alpha); 0: off", interval(0, 1))
    preprocess_mode: str = option("caffe", "pixel scaling and channel order", one_of("caffe", "torch", "tf"))
    image_mean: Mapping[str, float] = option(
        dict,
        "caffe means by channel; left out: b 103.939, g 116.779, r 123.68 or l 117.3786",
        finite("keys b, g, r (3 channels) or l (1), finite numbers"),
    )
    model_parallelism: tuple[float, ...] = option((), "share of the network on each device", above(0))
    visualizer: Visualizer = option(Visualizer, "what TensorBoard shows beside the curves")
    optimizer: Optimizer = required("exactly one of sgd, adam, rmsprop")
    reg_config: RegConfig = required("penalty on weights")
    lr_config: LrConfig = required("exactly one of step, soft_anneal, cosine")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation."""

    eval_dataset_path: str = required("folder with one sub-folder of images per class")
    model_path: str = option("", "model file; the flag -m overrides it")
    top_k: int = option(5, "the label counts among the k likeliest", at_least(1))
    batch_size: int = option(256, "images a batch", at_least(1))
    n_workers: int = option(8, "threads that load images; 0: the main thread", at_least(0))
    enable_center_crop: bool = option(True, "center crop; off: stretch")


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """torchvision's RandAugment."""

    num_ops: int = option(2, "changes of an image, one after the other", at_least(1))
    magnitude: int = option(9, "strength of a change", between(0, 30))


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """(1 - weight) · cross-entropy + weight · temperature² · KL divergence from the teacher's answers."""

    teacher: str = required("model file (.safetensors, .onnx, .engine) of the same classes and preprocessing")
    temperature: float = option(4.0, "divides the logits of both before their softmax", above(0))
    weight: float = option(0.5, "share of the teacher in the loss", interval(0, 1, "(]"))


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Training as INT8 computes, from pretrained_model_path on; the ranges stay as they are measured before it."""

    calibration_method: str = option(
        "auto",
        "what is cut of a range: what loses least information, all above 99.99 %, nothing, or that of the three which "
        "changes the answers least",
        one_of("auto", "entropy", "percentile", "minmax"),
    )
    calibration_batches: int = option(32, "batches of 16 training images that the ranges are measured on", at_least(1))
    keep: tuple[str, ...] = option((), "layers left in float", one_of("first", "last"))


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """What TAO's trainer has no field for; all of it off unless asked for."""

    crop_padding: int = option(
        0,
        "random shift while training: the fitted image is mirrored this many pixels beyond each edge, then cut back to "
        "the network's size at a random place; without enable_random_crop",
        at_least(0),
    )
    rand_augment: RandAugment | None = option(None, "random changes of each training image")
    random_erasing: float = option(
        0.0, "share of the training images that lose a random rectangle (2 to 33 % of the area)", interval(0, 1)
    )
    cutmix_alpha: float = option(
        0.0,
        "a rectangle of each image from the one before it in the batch, its area's share from Beta(alpha, alpha); "
        "with mixup_alpha chance takes one of the two for each batch; 0: off",
        interval(0, 1),
    )
    ema_decay: float = option(
        0.0,
        "validation and checkpoints take a running mean of weights and batch normalisation's statistics; share of it "
        "kept at each of the optimizer's steps, (1 + n) / (10 + n) in the first; 0: off",
        interval(0, 1, "[)"),
    )
    clip_grad_norm: float = option(
        0.0,
        "longest gradient of the loss without penalty, all weights together; longer ones are shortened; 0: off",
        interval(0, inf, "[)"),
    )
    accumulate_steps: int = option(
        1, "batches whose mean gradient makes one step of the optimizer and the schedule", at_least(1)
    )
    early_stopping_patience: int = option(
        0, "the training ends after that many epochs without a higher val_acc; 0: off", at_least(0)
    )
    distillation: Distillation | None = option(None, "learning from the answers of another model")
    average_checkpoints: int = option(
        0,
        "last epochs whose mean weights make weights/averaged.safetensors, batch normalisation's statistics taken "
        "anew over the training images; 0: off",
        at_least(0),
    )
    microbatches: int = option(
        1,
        "parts of a batch that follow each other through the devices of model_parallelism, which then work at the same "
        "time; batch normalisation sees each part alone",
        at_least(1),
    )
    quantization: Quantization | None = option(None, "training as INT8 computes, for export to INT8")


PLAIN = Extensions()
"""No extension asked for."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole spec file."""

    model_config: ModelConfig = required("the network")
    train_config: TrainConfig | None = option(None, "the training")
    eval_config: EvalConfig | None = option(None, "the evaluation")
    extensions: Extensions = option(Extensions, "training beyond TAO")
