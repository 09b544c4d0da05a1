"""The experiment as frozen dataclasses: the only table of fields, defaults, ranges and help.

A path in a spec file (`train_config.optimizer.sgd.lr`) is the path of the attribute; `descriptors.py` makes protobuf's
messages of the classes. The fields of `model_config` are in `architectures.py`, those of `extensions` in
`extensions.py`. What relates two fields is checked in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trt_cls.spec.architectures import Activation as Activation
from trt_cls.spec.architectures import BatchNormConfig as BatchNormConfig
from trt_cls.spec.architectures import ModelConfig as ModelConfig
from trt_cls.spec.extensions import NO_EXTENSIONS as NO_EXTENSIONS
from trt_cls.spec.extensions import Distillation as Distillation
from trt_cls.spec.extensions import Extensions as Extensions
from trt_cls.spec.extensions import Quantization as Quantization
from trt_cls.spec.extensions import RandAugment as RandAugment
from trt_cls.spec.fields import (
    ExactlyOne,
    above,
    at_least,
    checked_by_rules,
    enum,
    finite,
    interval,
    one_of,
    option,
    required,
)

NO_EFFECT = "accepted for compatibility with TAO; has no effect"


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    momentum: float = option(0.9, "momentum", interval(0, 1, "[)"))
    decay: float = option(0.0, NO_EFFECT, interval(0, 1))
    nesterov: bool = option(False, "Nesterov's momentum")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    beta_1: float = option(0.9, "decay of the mean of gradients", interval(0, 1, "[)"))
    beta_2: float = option(0.999, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-7, "added to the denominator", above(0))
    decay: float = option(0.0, NO_EFFECT, interval(0, 1))


@dataclass(frozen=True, kw_only=True)
class Rmsprop:
    """RMSprop, without momentum."""

    lr: float = option(0.01, "overridden by lr_config", above(0))
    rho: float = option(0.9, "decay of the mean of squared gradients", interval(0, 1, "[)"))
    epsilon: float = option(1e-7, "added to the denominator", above(0))
    decay: float = option(0.0, NO_EFFECT, interval(0, 1))


@dataclass(frozen=True, kw_only=True)
class Optimizer(ExactlyOne):
    """The optimizer of the training."""

    sgd: Sgd | None = option(None, "stochastic gradient descent")
    adam: Adam | None = option(None, "Adam")
    rmsprop: Rmsprop | None = option(None, "RMSprop")


@dataclass(frozen=True, kw_only=True)
class RegConfig:
    """The weight penalty."""

    type: str = required("penalty: sum of |w| (L1) or of w² (L2), times weight_decay", one_of("L1", "L2", "None"))
    scope: str = option(
        "Conv2D,Dense", "layer types with a penalty", checked_by_rules("Conv2D, Dense or both, comma-separated")
    )
    weight_decay: float = option(
        0.0, "factor of the penalty; required unless type is None", finite("a number in (0, 1), or any with type None")
    )


@dataclass(frozen=True, kw_only=True)
class StepLr:
    """learning_rate · gamma^k after k drops."""

    learning_rate: float = required("initial learning rate; multiplied by the number of GPUs", above(0))
    step_size: float = required(
        "the rate drops each time this many percent of the training have passed", interval(0, 100, "()")
    )
    gamma: float = required("factor of each drop", interval(0, 1, "()"))


@dataclass(frozen=True, kw_only=True)
class SoftAnnealLr:
    """Linear warmup, then divided at each annealing point."""

    learning_rate: float = required("learning rate after warmup; multiplied by the number of GPUs", above(0))
    soft_start: float = option(0.0, "fraction of the training spent on warmup", interval(0, 1, "[)"))
    annealing_divider: float = option(10.0, "divisor of the rate at each annealing point", above(1))
    annealing_points: tuple[float, ...] = option(
        (), "fractions of the training at which the rate drops, in ascending order", interval(0, 1, "()")
    )


@dataclass(frozen=True, kw_only=True)
class CosineLr:
    """Linear warmup, then half a cosine down to min_lr_ratio · learning_rate."""

    learning_rate: float = required("highest learning rate; multiplied by the number of GPUs", above(0))
    min_lr_ratio: float = option(0.0, "lowest rate as a fraction of the highest", interval(0, 1, "[)"))
    soft_start: float = option(0.0, "fraction of the training spent on warmup", interval(0, 1, "[)"))


@dataclass(frozen=True, kw_only=True)
class LrConfig(ExactlyOne):
    """The learning rate schedule of the training."""

    step: StepLr | None = option(None, "drops by a factor at equal intervals")
    soft_anneal: SoftAnnealLr | None = option(None, "warmup, then drops at given points")
    cosine: CosineLr | None = option(None, "warmup, then a cosine")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases."""

    enabled: bool = option(False, "log to Weights & Biases")
    key: str = option(
        "",
        "API key; not written to experiment_spec.txt: to train from that file, set WANDB_API_KEY or run wandb login",
        secret=True,
    )
    project: str = option("", "project")
    entity: str = option("", "user or team")
    reinit: bool = option(False, NO_EFFECT)
    name: str = option("", "name of the run")
    tags: tuple[str, ...] = option((), "tags of the run")
    wandb_dir: str = option("", "folder for local files")
    notes: str = option("", "notes on the run")
    mode: str = option(
        "ONLINE", "ONLINE sends logs to the server, OFFLINE keeps them on disk", enum("ONLINE", "OFFLINE", "DISABLED")
    )


@dataclass(frozen=True, kw_only=True)
class ClearmlConfig:
    """ClearML."""

    project: str = option("", "project")
    task: str = option("", "task")
    tags: tuple[str, ...] = option((), "tags of the task")
    reuse_last_task_id: bool = option(False, "reuse the last task")
    continue_last_task: bool = option(False, "continue the last task")
    deferred_init: bool = option(False, "initialize the task in the background")


@dataclass(frozen=True, kw_only=True)
class Visualizer:
    """TensorBoard images and histograms, experiment trackers."""

    enabled: bool = option(False, "write images and histograms")
    num_images: int = option(3, "number of training images written per epoch", at_least(0))
    weight_histograms: bool = option(False, "write histograms of the weights each epoch")
    wandb_config: WandbConfig | None = option(None, "Weights & Biases")
    clearml_config: ClearmlConfig | None = option(None, "ClearML")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training."""

    train_dataset_path: str = required(
        "folder with one sub-folder of images per class, or shards: DIR/train-{000000..000127}.tar"
    )
    val_dataset_path: str = option("", "the same, for validation after each epoch; required without validation_split")
    pretrained_model_path: str = option(
        "", 'model file with the initial weights; "hub": the pretrained weights of torchvision or timm'
    )
    batch_size_per_gpu: int = option(32, "batch size on each GPU", at_least(1))
    n_epochs: int = option(120, "number of epochs", at_least(1))
    n_workers: int = option(10, "number of processes that load images; 0: the main process", at_least(0))
    random_seed: int = option(42, "seed of all random numbers", at_least(0))
    enable_random_crop: bool = option(True, "random crop in training")
    enable_center_crop: bool = option(True, "center crop in validation; off: resize without keeping the aspect ratio")
    enable_color_augmentation: bool = option(True, "random hue, saturation and contrast; only with enable_random_crop")
    disable_horizontal_flip: bool = option(False, "no random horizontal flip")
    label_smoothing: float = option(0.1, "share of the target that is spread over all classes", interval(0, 1, "[)"))
    mixup_alpha: float = option(0.2, "alpha of mixup's Beta(alpha, alpha); 0: off", interval(0, 1))
    preprocess_mode: str = option("caffe", "pixel scaling and channel order", one_of("caffe", "torch", "tf"))
    image_mean: Mapping[str, float] = option(
        dict,
        "means that caffe mode subtracts, by channel; default: b 103.939, g 116.779, r 123.68 or l 117.3786",
        finite("keys b, g, r (3 channels) or l (1), finite numbers"),
    )
    model_parallelism: tuple[float, ...] = option((), "relative share of the network on each device", above(0))
    visualizer: Visualizer = option(Visualizer, "TensorBoard images and histograms, experiment trackers")
    optimizer: Optimizer = required(f"exactly one of {', '.join(Optimizer.__dataclass_fields__)}")
    reg_config: RegConfig = required("weight penalty")
    lr_config: LrConfig = required(f"exactly one of {', '.join(LrConfig.__dataclass_fields__)}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation."""

    eval_dataset_path: str = option("", "the same, for evaluate; required without extensions.validation_split")
    model_path: str = option("", "model file; overridden by -m")
    top_k: int = option(5, "k of top-k accuracy", at_least(1))
    batch_size: int = option(256, "batch size", at_least(1))
    n_workers: int = option(8, "number of threads that load images; 0: the main thread", at_least(0))
    enable_center_crop: bool = option(True, "center crop; off: resize without keeping the aspect ratio")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A spec file."""

    model_config: ModelConfig = required("the network")
    train_config: TrainConfig | None = option(None, "the training")
    eval_config: EvalConfig | None = option(None, "the evaluation")
    extensions: Extensions = option(Extensions, "options that TAO does not have")
