"""From a request to a finished training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from trt_cls import spec
from trt_cls.data.folder import write_classmap
from trt_cls.errors import TrtClsError
from trt_cls.files import write_text
from trt_cls.spec.experiment import Experiment
from trt_cls.training.compute import choose_compute, repeatable
from trt_cls.training.learner import Learner
from trt_cls.training.loop import Training, TrainingResult
from trt_cls.training.reporter import Reporter
from trt_cls.training.request import TrainingData, make_model, open_data, supported
from trt_cls.training.results import open_results
from trt_cls.training.state import read_state, refuse_other_request, request_fields


def train(
    experiment: Experiment,
    results: Path,
    *,
    classmap: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: str = "auto",
    init_epoch: int = 1,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Trains the network of `experiment` and writes checkpoints, curves and logs below `results`.

    Two runs of the same request on the same machine give the same numbers, whatever n_workers is and however often they
    were interrupted and resumed.

    Raises:
        RequestError: the request can't be met, or does not fit what `results` holds.
        DataError: a folder, or a whole class, can't be used.
        DeviceError: the device is not there.
        Interrupted: by Ctrl-C or SIGTERM; the state is saved.
        TrtClsError: the loss is no longer a number, or the GPU's memory is too small.
    """
    reporter = reporter or Reporter()
    config = supported(experiment, init_epoch=init_epoch, resume=resume)
    folder = open_results(results, resume=resume)
    state = read_state(folder.state) if resume else None
    if state is not None and precision == "auto":
        precision = state.request["--precision"]
    compute = choose_compute(device, precision)
    data = open_data(experiment, config, folder.classmap if resume and classmap is None else classmap)
    request = request_fields(experiment, compute.precision, data.train, data.val)
    if state is not None:
        refuse_other_request(state.request, request, folder.spec)
    with repeatable():
        model = make_model(data, config, reporter, resume=resume)
        training = Training(config, data, Learner(model, config, compute), folder, request, reporter, init_epoch)
        if state is not None:
            training.restore(state)
        write_text(folder.spec, spec.show(experiment))
        write_classmap(folder.classmap, data.train.classes)
        reporter.line(f"{compute} · seed {config.random_seed} · {_size(data, model)}")
        try:
            return training.run(resumed=resume)
        except torch.OutOfMemoryError as error:
            raise TrtClsError(
                f"the GPU's memory is too small for batches of {config.batch_size_per_gpu} images; expected "
                "smaller ones; lower train_config.batch_size_per_gpu and train in another folder"
            ) from error


def _size(data: TrainingData, model: nn.Module) -> str:
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return (
        f"{len(data.train.samples)} training and {len(data.val.samples)} validation images · "
        f"{len(data.contract.classes)} classes · {total:,} parameters, {trainable:,} trainable · "
        f"{data.loader.steps_per_epoch} steps an epoch"
    )
