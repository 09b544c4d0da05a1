"""What a training is made from: the checked request, the images, and the network with its first weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trt_cls.artefacts.classmap import read_classmap
from trt_cls.contract import UNDECIDED, Contract, Precision
from trt_cls.data.folder import ImageFolder
from trt_cls.data.loader import TrainingLoader
from trt_cls.data.shards import Epochs
from trt_cls.data.split import training_datasets
from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.pretrained import LoadedWeights, load_pretrained, take
from trt_cls.preprocessing.cuda import CudaAugmentation
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.spec.architectures import HUB, is_external
from trt_cls.spec.experiment import Experiment, Extensions, ModelConfig, TrainConfig
from trt_cls.training.compute import Compute
from trt_cls.training.logs.console import Reporter
from trt_cls.training.prefetch import open_augmentation
from trt_cls.training.resizing import Size, require_any_size, size_at


@dataclass(frozen=True)
class Setup:
    """The request of a training, where it runs, and its images; to be closed."""

    experiment: Experiment
    config: TrainConfig
    processes: Processes
    compute: Compute
    train: ImageFolder
    val: ImageFolder
    loader: TrainingLoader
    contract: Contract
    kernel: CudaAugmentation | None
    """Makes the images of packed batches; without it the loader makes them."""

    @property
    def extensions(self) -> Extensions:
        """The spec's extensions."""
        return self.experiment.extensions

    def image_size(self, progress: float) -> Size:
        """Height and width of the images that a step trains on, at `progress`, 0 to 1, of the training."""
        _, height, width = self.contract.model.input_shape
        return size_at(progress, (height, width), self.extensions.progressive_resizing)

    def close(self) -> None:
        """Ends the loader's processes, and frees the kernel's memory on the GPU."""
        self.loader.close()
        if self.kernel:
            self.kernel.close()


def supported(experiment: Experiment, *, init_epoch: int, resume: bool) -> TrainConfig:
    """The spec's train_config.

    Raises:
        RequestError: a part of it is not supported, or `init_epoch` does not fit the rest.
    """
    config = experiment.train_config
    if config is None:
        raise RequestError("the spec has no train_config; expected one; add it, see trt-cls spec fields")
    arch = experiment.model_config.arch
    if len(config.model_parallelism) > 1 and is_external(arch):
        raise RequestError(
            f"train_config.model_parallelism: {len(config.model_parallelism)} shares, but {arch} can't be split; "
            "expected one share at most for a network of another library; leave the field out"
        )
    if config.visualizer.enabled and config.visualizer.clearml_config is not None:
        raise RequestError(
            "train_config.visualizer.clearml_config: not supported; expected it left out; "
            "TensorBoard's events and training.csv are written in any case, see also --logger"
        )
    if not 1 <= init_epoch <= config.n_epochs:
        raise RequestError(
            f"--init-epoch {init_epoch}: expected 1 to train_config.n_epochs, which is {config.n_epochs}"
        )
    if init_epoch > 1 and resume:
        raise RequestError(f"--init-epoch {init_epoch} with --resume, which knows its epoch; expected one of the two")
    if init_epoch > 1 and not config.pretrained_model_path:
        raise RequestError(
            f"--init-epoch {init_epoch} without train_config.pretrained_model_path; expected the model of epoch "
            f"{init_epoch - 1} there; set it, or use --resume"
        )
    return config


def open_setup(
    experiment: Experiment,
    config: TrainConfig,
    classmap: Path | None,
    processes: Processes,
    compute: Compute,
    order: Epochs = "shards",
) -> Setup:
    """Lists the images; class indices are those of `classmap`, or as the training folder or its shards have them."""
    classes = read_classmap(classmap) if classmap else None
    to_train, to_validate = training_datasets(config, experiment.extensions, order)
    train = to_train.labeled(classes)
    several = bool(experiment.extensions.labels)
    val = to_validate.labeled(train.classes, allow_missing=several)  # a label without images has no average precision
    preprocessing, extensions = preprocessing_from_spec(experiment, "train"), experiment.extensions
    kernel = open_augmentation(compute, preprocessing, extensions)
    pack = kernel is not None
    loader = TrainingLoader(
        train, preprocessing, config, processes.rank, processes.size, extensions, pack=pack, gpu=compute.device.index
    )
    precision: Precision = "int8" if extensions.quantization else "fp32"
    contract = Contract(experiment.model_config, preprocessing, train.classes, precision)
    if several:
        contract = replace(contract, task="multi", thresholds=(UNDECIDED,) * len(train.classes))
    return Setup(experiment, config, processes, compute, train, val, loader, contract, kernel)


def make_model(setup: Setup, reporter: Reporter, *, resume: bool) -> nn.Module:
    """The network with its first weights: drawn from the seed, then those of pretrained_model_path that fit.

    A training that is resumed has its own weights in its state.
    """
    torch.manual_seed(setup.config.random_seed)
    extensions, arch = setup.extensions, setup.contract.model.arch
    model = build(setup.contract.model, len(setup.contract.classes), drop_path=extensions.drop_path)
    if extensions.gradient_checkpointing:
        try:
            checkpointing: Any = model.set_grad_checkpointing
            checkpointing()
        except (AttributeError, AssertionError) as error:  # timm asserts that a network of its own has it
            raise RequestError(
                f"extensions.gradient_checkpointing: {arch} has none; expected a built-in network, or one of timm that "
                "has it; leave the field out"
            ) from error
    if extensions.progressive_resizing:
        require_any_size(model, setup.contract.model.input_shape, extensions.progressive_resizing, arch)
    if setup.config.pretrained_model_path and not resume:
        taken = _pretrained(model, setup.contract.model, setup.config.pretrained_model_path)
        for line in str(taken).splitlines():
            reporter.line(line)
    return model


def _pretrained(model: nn.Module, config: ModelConfig, path: str) -> LoadedWeights:
    if path != HUB or not is_external(config.arch):
        return load_pretrained(model, Path(path), config)
    from trt_cls.models.external import hub_weights

    return take(model, hub_weights(config), f"{config.arch} from its hub")
