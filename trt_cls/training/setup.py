"""What a training needs before its first step, made from the request; a request that can't be met is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trt_cls.artefacts.classmap import read_classmap
from trt_cls.contract import Contract, Precision
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.loader import TrainingLoader
from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError
from trt_cls.models import build
from trt_cls.models.pretrained import LoadedWeights, load_pretrained, take
from trt_cls.preprocessing.cuda import CudaAugmentation
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.spec.architectures import HUB, is_external
from trt_cls.spec.experiment import Experiment, ModelConfig, TrainConfig
from trt_cls.training.compute import Compute
from trt_cls.training.logs.console import Reporter
from trt_cls.training.prefetch import open_augmentation


@dataclass(frozen=True)
class TrainingData:
    """The images, and what the network makes of them."""

    train: ImageFolder
    val: ImageFolder
    loader: TrainingLoader
    contract: Contract
    kernel: CudaAugmentation | None
    """Makes the images of packed batches; without it the loader makes whole ones."""

    def close(self) -> None:
        """Ends the loader's processes, and gives back what the kernel holds on the GPU."""
        self.loader.close()
        if self.kernel:
            self.kernel.close()


def supported(experiment: Experiment, *, init_epoch: int, resume: bool) -> TrainConfig:
    """The spec's train_config, if all that it asks for can be done.

    Raises:
        RequestError: it can't, or `init_epoch` does not fit the rest.
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
    _refuse_trackers(config)
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


def open_data(
    experiment: Experiment, config: TrainConfig, classmap: Path | None, processes: Processes, compute: Compute
) -> TrainingData:
    """Lists the folders; class indices are those of `classmap`, or the alphabetical order of the training folder.

    The result is to be closed.
    """
    classes = read_classmap(classmap) if classmap else None
    train = image_folder(Path(config.train_dataset_path), classes)
    val = image_folder(Path(config.val_dataset_path), train.classes)
    preprocessing, extensions = preprocessing_from_spec(experiment, "train"), experiment.extensions
    kernel = open_augmentation(compute, preprocessing, extensions)
    pack = kernel is not None
    loader = TrainingLoader(
        train, preprocessing, config, processes.rank, processes.size, extensions, pack=pack, gpu=compute.device.index
    )
    precision: Precision = "int8" if extensions.quantization else "fp32"
    contract = Contract(experiment.model_config, preprocessing, train.classes, precision)
    return TrainingData(train, val, loader, contract, kernel)


def make_model(data: TrainingData, config: TrainConfig, reporter: Reporter | None, *, resume: bool) -> nn.Module:
    """The network with its first weights: drawn from the seed, then those of pretrained_model_path that fit.

    A training that is resumed has its own weights in its state.
    """
    torch.manual_seed(config.random_seed)
    model = build(data.contract.model, len(data.contract.classes))
    if config.pretrained_model_path and not resume:
        report = _pretrained(model, data.contract.model, config.pretrained_model_path)
        if reporter:
            reporter.line(str(report))
    return model


def _pretrained(model: nn.Module, config: ModelConfig, path: str) -> LoadedWeights:
    if path != HUB or not is_external(config.arch):
        return load_pretrained(model, Path(path), config)
    from trt_cls.models.external import hub_weights

    return take(model, hub_weights(config), f"{config.arch} from its hub")


def _refuse_trackers(config: TrainConfig) -> None:
    visualizer = config.visualizer
    if visualizer.enabled and visualizer.clearml_config is not None:
        raise RequestError(
            "train_config.visualizer.clearml_config: not supported; expected it left out; "
            "TensorBoard's events and training.csv are written in any case, see also --logger"
        )
