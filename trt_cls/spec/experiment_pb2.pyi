from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BatchNormConfig(_message.Message):
    __slots__ = ("momentum", "epsilon")
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    momentum: float
    epsilon: float
    def __init__(self, momentum: _Optional[float] = ..., epsilon: _Optional[float] = ...) -> None: ...

class Activation(_message.Message):
    __slots__ = ("activation_type", "activation_parameters")
    class ActivationParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ACTIVATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    activation_type: str
    activation_parameters: _containers.ScalarMap[str, float]
    def __init__(self, activation_type: _Optional[str] = ..., activation_parameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ModelConfig(_message.Message):
    __slots__ = ("arch", "n_layers", "input_image_size", "resize_interpolation_method", "use_batch_norm", "use_bias", "use_pooling", "all_projections", "retain_head", "freeze_bn", "freeze_blocks", "dropout", "batch_norm_config", "activation", "byom_model")
    class ResizeInterpolationMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BILINEAR: _ClassVar[ModelConfig.ResizeInterpolationMethod]
        BICUBIC: _ClassVar[ModelConfig.ResizeInterpolationMethod]
    BILINEAR: ModelConfig.ResizeInterpolationMethod
    BICUBIC: ModelConfig.ResizeInterpolationMethod
    ARCH_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    INPUT_IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_INTERPOLATION_METHOD_FIELD_NUMBER: _ClassVar[int]
    USE_BATCH_NORM_FIELD_NUMBER: _ClassVar[int]
    USE_BIAS_FIELD_NUMBER: _ClassVar[int]
    USE_POOLING_FIELD_NUMBER: _ClassVar[int]
    ALL_PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    RETAIN_HEAD_FIELD_NUMBER: _ClassVar[int]
    FREEZE_BN_FIELD_NUMBER: _ClassVar[int]
    FREEZE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    BATCH_NORM_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    BYOM_MODEL_FIELD_NUMBER: _ClassVar[int]
    arch: str
    n_layers: int
    input_image_size: str
    resize_interpolation_method: ModelConfig.ResizeInterpolationMethod
    use_batch_norm: bool
    use_bias: bool
    use_pooling: bool
    all_projections: bool
    retain_head: bool
    freeze_bn: bool
    freeze_blocks: _containers.RepeatedScalarFieldContainer[float]
    dropout: float
    batch_norm_config: BatchNormConfig
    activation: Activation
    byom_model: str
    def __init__(self, arch: _Optional[str] = ..., n_layers: _Optional[int] = ..., input_image_size: _Optional[str] = ..., resize_interpolation_method: _Optional[_Union[ModelConfig.ResizeInterpolationMethod, str]] = ..., use_batch_norm: _Optional[bool] = ..., use_bias: _Optional[bool] = ..., use_pooling: _Optional[bool] = ..., all_projections: _Optional[bool] = ..., retain_head: _Optional[bool] = ..., freeze_bn: _Optional[bool] = ..., freeze_blocks: _Optional[_Iterable[float]] = ..., dropout: _Optional[float] = ..., batch_norm_config: _Optional[_Union[BatchNormConfig, _Mapping]] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., byom_model: _Optional[str] = ...) -> None: ...

class Sgd(_message.Message):
    __slots__ = ("lr", "momentum", "decay", "nesterov")
    LR_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    DECAY_FIELD_NUMBER: _ClassVar[int]
    NESTEROV_FIELD_NUMBER: _ClassVar[int]
    lr: float
    momentum: float
    decay: float
    nesterov: bool
    def __init__(self, lr: _Optional[float] = ..., momentum: _Optional[float] = ..., decay: _Optional[float] = ..., nesterov: _Optional[bool] = ...) -> None: ...

class Adam(_message.Message):
    __slots__ = ("lr", "beta_1", "beta_2", "epsilon", "decay")
    LR_FIELD_NUMBER: _ClassVar[int]
    BETA_1_FIELD_NUMBER: _ClassVar[int]
    BETA_2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DECAY_FIELD_NUMBER: _ClassVar[int]
    lr: float
    beta_1: float
    beta_2: float
    epsilon: float
    decay: float
    def __init__(self, lr: _Optional[float] = ..., beta_1: _Optional[float] = ..., beta_2: _Optional[float] = ..., epsilon: _Optional[float] = ..., decay: _Optional[float] = ...) -> None: ...

class Rmsprop(_message.Message):
    __slots__ = ("lr", "rho", "epsilon", "decay")
    LR_FIELD_NUMBER: _ClassVar[int]
    RHO_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DECAY_FIELD_NUMBER: _ClassVar[int]
    lr: float
    rho: float
    epsilon: float
    decay: float
    def __init__(self, lr: _Optional[float] = ..., rho: _Optional[float] = ..., epsilon: _Optional[float] = ..., decay: _Optional[float] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("sgd", "adam", "rmsprop")
    SGD_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    RMSPROP_FIELD_NUMBER: _ClassVar[int]
    sgd: Sgd
    adam: Adam
    rmsprop: Rmsprop
    def __init__(self, sgd: _Optional[_Union[Sgd, _Mapping]] = ..., adam: _Optional[_Union[Adam, _Mapping]] = ..., rmsprop: _Optional[_Union[Rmsprop, _Mapping]] = ...) -> None: ...

class RegConfig(_message.Message):
    __slots__ = ("type", "scope", "weight_decay")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    type: str
    scope: str
    weight_decay: float
    def __init__(self, type: _Optional[str] = ..., scope: _Optional[str] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class StepLr(_message.Message):
    __slots__ = ("learning_rate", "step_size", "gamma")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    STEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    step_size: float
    gamma: float
    def __init__(self, learning_rate: _Optional[float] = ..., step_size: _Optional[float] = ..., gamma: _Optional[float] = ...) -> None: ...

class SoftAnnealLr(_message.Message):
    __slots__ = ("learning_rate", "soft_start", "annealing_divider", "annealing_points")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SOFT_START_FIELD_NUMBER: _ClassVar[int]
    ANNEALING_DIVIDER_FIELD_NUMBER: _ClassVar[int]
    ANNEALING_POINTS_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    soft_start: float
    annealing_divider: float
    annealing_points: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, learning_rate: _Optional[float] = ..., soft_start: _Optional[float] = ..., annealing_divider: _Optional[float] = ..., annealing_points: _Optional[_Iterable[float]] = ...) -> None: ...

class CosineLr(_message.Message):
    __slots__ = ("learning_rate", "min_lr_ratio", "soft_start")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MIN_LR_RATIO_FIELD_NUMBER: _ClassVar[int]
    SOFT_START_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    min_lr_ratio: float
    soft_start: float
    def __init__(self, learning_rate: _Optional[float] = ..., min_lr_ratio: _Optional[float] = ..., soft_start: _Optional[float] = ...) -> None: ...

class LrConfig(_message.Message):
    __slots__ = ("step", "soft_anneal", "cosine")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SOFT_ANNEAL_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    step: StepLr
    soft_anneal: SoftAnnealLr
    cosine: CosineLr
    def __init__(self, step: _Optional[_Union[StepLr, _Mapping]] = ..., soft_anneal: _Optional[_Union[SoftAnnealLr, _Mapping]] = ..., cosine: _Optional[_Union[CosineLr, _Mapping]] = ...) -> None: ...

class WandbConfig(_message.Message):
    __slots__ = ("enabled", "key", "project", "entity", "reinit", "name", "tags", "wandb_dir", "notes", "mode")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ONLINE: _ClassVar[WandbConfig.Mode]
        OFFLINE: _ClassVar[WandbConfig.Mode]
        DISABLED: _ClassVar[WandbConfig.Mode]
    ONLINE: WandbConfig.Mode
    OFFLINE: WandbConfig.Mode
    DISABLED: WandbConfig.Mode
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    REINIT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    WANDB_DIR_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    key: str
    project: str
    entity: str
    reinit: bool
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    wandb_dir: str
    notes: str
    mode: WandbConfig.Mode
    def __init__(self, enabled: _Optional[bool] = ..., key: _Optional[str] = ..., project: _Optional[str] = ..., entity: _Optional[str] = ..., reinit: _Optional[bool] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., wandb_dir: _Optional[str] = ..., notes: _Optional[str] = ..., mode: _Optional[_Union[WandbConfig.Mode, str]] = ...) -> None: ...

class ClearmlConfig(_message.Message):
    __slots__ = ("project", "task", "tags", "reuse_last_task_id", "continue_last_task", "deferred_init")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    REUSE_LAST_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_LAST_TASK_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_INIT_FIELD_NUMBER: _ClassVar[int]
    project: str
    task: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    reuse_last_task_id: bool
    continue_last_task: bool
    deferred_init: bool
    def __init__(self, project: _Optional[str] = ..., task: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., reuse_last_task_id: _Optional[bool] = ..., continue_last_task: _Optional[bool] = ..., deferred_init: _Optional[bool] = ...) -> None: ...

class Visualizer(_message.Message):
    __slots__ = ("enabled", "num_images", "weight_histograms", "wandb_config", "clearml_config")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    WANDB_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CLEARML_CONFIG_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    num_images: int
    weight_histograms: bool
    wandb_config: WandbConfig
    clearml_config: ClearmlConfig
    def __init__(self, enabled: _Optional[bool] = ..., num_images: _Optional[int] = ..., weight_histograms: _Optional[bool] = ..., wandb_config: _Optional[_Union[WandbConfig, _Mapping]] = ..., clearml_config: _Optional[_Union[ClearmlConfig, _Mapping]] = ...) -> None: ...

class TrainConfig(_message.Message):
    __slots__ = ("train_dataset_path", "val_dataset_path", "pretrained_model_path", "batch_size_per_gpu", "n_epochs", "n_workers", "random_seed", "enable_random_crop", "enable_center_crop", "enable_color_augmentation", "disable_horizontal_flip", "label_smoothing", "mixup_alpha", "preprocess_mode", "image_mean", "model_parallelism", "visualizer", "optimizer", "reg_config", "lr_config")
    class ImageMeanEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TRAIN_DATASET_PATH_FIELD_NUMBER: _ClassVar[int]
    VAL_DATASET_PATH_FIELD_NUMBER: _ClassVar[int]
    PRETRAINED_MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_PER_GPU_FIELD_NUMBER: _ClassVar[int]
    N_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    N_WORKERS_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SEED_FIELD_NUMBER: _ClassVar[int]
    ENABLE_RANDOM_CROP_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CENTER_CROP_FIELD_NUMBER: _ClassVar[int]
    ENABLE_COLOR_AUGMENTATION_FIELD_NUMBER: _ClassVar[int]
    DISABLE_HORIZONTAL_FLIP_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    MIXUP_ALPHA_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_MODE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_MEAN_FIELD_NUMBER: _ClassVar[int]
    MODEL_PARALLELISM_FIELD_NUMBER: _ClassVar[int]
    VISUALIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    REG_CONFIG_FIELD_NUMBER: _ClassVar[int]
    LR_CONFIG_FIELD_NUMBER: _ClassVar[int]
    train_dataset_path: str
    val_dataset_path: str
    pretrained_model_path: str
    batch_size_per_gpu: int
    n_epochs: int
    n_workers: int
    random_seed: int
    enable_random_crop: bool
    enable_center_crop: bool
    enable_color_augmentation: bool
    disable_horizontal_flip: bool
    label_smoothing: float
    mixup_alpha: float
    preprocess_mode: str
    image_mean: _containers.ScalarMap[str, float]
    model_parallelism: _containers.RepeatedScalarFieldContainer[float]
    visualizer: Visualizer
    optimizer: Optimizer
    reg_config: RegConfig
    lr_config: LrConfig
    def __init__(self, train_dataset_path: _Optional[str] = ..., val_dataset_path: _Optional[str] = ..., pretrained_model_path: _Optional[str] = ..., batch_size_per_gpu: _Optional[int] = ..., n_epochs: _Optional[int] = ..., n_workers: _Optional[int] = ..., random_seed: _Optional[int] = ..., enable_random_crop: _Optional[bool] = ..., enable_center_crop: _Optional[bool] = ..., enable_color_augmentation: _Optional[bool] = ..., disable_horizontal_flip: _Optional[bool] = ..., label_smoothing: _Optional[float] = ..., mixup_alpha: _Optional[float] = ..., preprocess_mode: _Optional[str] = ..., image_mean: _Optional[_Mapping[str, float]] = ..., model_parallelism: _Optional[_Iterable[float]] = ..., visualizer: _Optional[_Union[Visualizer, _Mapping]] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., reg_config: _Optional[_Union[RegConfig, _Mapping]] = ..., lr_config: _Optional[_Union[LrConfig, _Mapping]] = ...) -> None: ...

class EvalConfig(_message.Message):
    __slots__ = ("eval_dataset_path", "model_path", "top_k", "batch_size", "n_workers", "enable_center_crop")
    EVAL_DATASET_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_WORKERS_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CENTER_CROP_FIELD_NUMBER: _ClassVar[int]
    eval_dataset_path: str
    model_path: str
    top_k: int
    batch_size: int
    n_workers: int
    enable_center_crop: bool
    def __init__(self, eval_dataset_path: _Optional[str] = ..., model_path: _Optional[str] = ..., top_k: _Optional[int] = ..., batch_size: _Optional[int] = ..., n_workers: _Optional[int] = ..., enable_center_crop: _Optional[bool] = ...) -> None: ...

class RandAugment(_message.Message):
    __slots__ = ("num_ops", "magnitude")
    NUM_OPS_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
    num_ops: int
    magnitude: int
    def __init__(self, num_ops: _Optional[int] = ..., magnitude: _Optional[int] = ...) -> None: ...

class Distillation(_message.Message):
    __slots__ = ("teacher", "temperature", "weight")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    temperature: float
    weight: float
    def __init__(self, teacher: _Optional[str] = ..., temperature: _Optional[float] = ..., weight: _Optional[float] = ...) -> None: ...

class Quantization(_message.Message):
    __slots__ = ("calibration_method", "calibration_batches", "keep")
    CALIBRATION_METHOD_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_BATCHES_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    calibration_method: str
    calibration_batches: int
    keep: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, calibration_method: _Optional[str] = ..., calibration_batches: _Optional[int] = ..., keep: _Optional[_Iterable[str]] = ...) -> None: ...

class Extensions(_message.Message):
    __slots__ = ("crop_padding", "rand_augment", "random_erasing", "cutmix_alpha", "ema_decay", "clip_grad_norm", "accumulate_steps", "early_stopping_patience", "distillation", "average_checkpoints", "microbatches", "quantization")
    CROP_PADDING_FIELD_NUMBER: _ClassVar[int]
    RAND_AUGMENT_FIELD_NUMBER: _ClassVar[int]
    RANDOM_ERASING_FIELD_NUMBER: _ClassVar[int]
    CUTMIX_ALPHA_FIELD_NUMBER: _ClassVar[int]
    EMA_DECAY_FIELD_NUMBER: _ClassVar[int]
    CLIP_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATE_STEPS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    DISTILLATION_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    crop_padding: int
    rand_augment: RandAugment
    random_erasing: float
    cutmix_alpha: float
    ema_decay: float
    clip_grad_norm: float
    accumulate_steps: int
    early_stopping_patience: int
    distillation: Distillation
    average_checkpoints: int
    microbatches: int
    quantization: Quantization
    def __init__(self, crop_padding: _Optional[int] = ..., rand_augment: _Optional[_Union[RandAugment, _Mapping]] = ..., random_erasing: _Optional[float] = ..., cutmix_alpha: _Optional[float] = ..., ema_decay: _Optional[float] = ..., clip_grad_norm: _Optional[float] = ..., accumulate_steps: _Optional[int] = ..., early_stopping_patience: _Optional[int] = ..., distillation: _Optional[_Union[Distillation, _Mapping]] = ..., average_checkpoints: _Optional[int] = ..., microbatches: _Optional[int] = ..., quantization: _Optional[_Union[Quantization, _Mapping]] = ...) -> None: ...

class Experiment(_message.Message):
    __slots__ = ("model_config", "train_config", "eval_config", "extensions")
    MODEL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRAIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    EVAL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    model_config: ModelConfig
    train_config: TrainConfig
    eval_config: EvalConfig
    extensions: Extensions
    def __init__(self, model_config: _Optional[_Union[ModelConfig, _Mapping]] = ..., train_config: _Optional[_Union[TrainConfig, _Mapping]] = ..., eval_config: _Optional[_Union[EvalConfig, _Mapping]] = ..., extensions: _Optional[_Union[Extensions, _Mapping]] = ...) -> None: ...
