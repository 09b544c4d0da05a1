"""From a request to a finished training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from trt_cls import spec
from trt_cls.artefacts.classmap import write_classmap
from trt_cls.distributed.processes import Processes
from trt_cls.errors import TrtClsError
from trt_cls.files import write_text
from trt_cls.models.int8_layers import quantize_like
from trt_cls.models.widths import resize
from trt_cls.spec.experiment import Experiment, TrainConfig
from trt_cls.training.compute import Compute, choose_compute, compiler_failures_told, repeatable
from trt_cls.training.distillation import Teacher
from trt_cls.training.learner import Learner
from trt_cls.training.logs import Journal
from trt_cls.training.logs.console import Reporter
from trt_cls.training.logs.trackers import Loggers
from trt_cls.training.loop import Training, TrainingResult
from trt_cls.training.parallel import joined_to_train
from trt_cls.training.quantization import quantize
from trt_cls.training.run_folder import Results, open_results
from trt_cls.training.setup import TrainingData, make_model, open_data, supported
from trt_cls.training.state import (
    TrainState,
    fingerprint,
    flat,
    foreign_told,
    read_state,
    refuse_other_request,
    request_fields,
)
from trt_cls.version import __version__


def train(
    experiment: Experiment,
    results: Path,
    *,
    classmap: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: str = "auto",
    init_epoch: int = 1,
    save_every: int | None = None,
    compile_network: bool = False,
    loggers: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Trains the network of `experiment` and writes checkpoints, curves and logs below `results`.

    Two runs of the same request on the same machine give the same numbers, whatever n_workers is and however often they
    were interrupted, or killed, and resumed. The state is saved every `save_every` steps (None: every few minutes) and
    after each epoch. `compile_network` lets torch.compile make the kernels. `loggers` are "wandb" and "mlflow". Under
    torchrun all processes train together and return the result.

    Raises:
        RequestError: the request can't be met, or does not fit what `results` holds.
        DataError: a folder, or a whole class, can't be used.
        DeviceError: the device is not there.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP; the state is saved.
        LoaderError: a process that makes batches died or failed.
        TrtClsError: the loss is no longer a number, memory is too small, or the disk is full.
    """
    config = supported(experiment, init_epoch=init_epoch, resume=resume)
    stages = max(1, len(config.model_parallelism))
    with joined_to_train(device, stages) as processes, ExitStack() as stack:
        folder = Results(results)
        if processes.first:
            stack.enter_context(open_results(folder, resume=resume))
        processes.wait()
        state = read_state(folder.state) if resume else None
        if state is not None and precision == "auto":
            precision = state.request["--precision"]
        compute = choose_compute(device, precision, stages)
        known = folder.classmap if resume and classmap is None else classmap
        data = open_data(experiment, config, known, processes, compute)
        stack.callback(data.close)
        compile_network = compile_network or (state is not None and state.request["--compile"])
        options = {"--precision": compute.precision, "--compile": compile_network, "processes": processes.size}
        extensions = experiment.extensions
        if extensions.distillation:
            options["teacher"] = fingerprint(Path(extensions.distillation.teacher))
        request = request_fields(experiment, options, data.train, data.val)
        if state is not None:
            refuse_other_request(state.request, request, folder.spec)
        reporter = (reporter or Reporter()) if processes.first else None
        with repeatable(compute.precision), _failures_told(config, compile_network=compile_network):
            model = make_model(data, config, reporter, resume=resume)
            if state is not None:
                _shape_like(model, state, folder.state)
            elif extensions.quantization:
                quantized = quantize(model, extensions.quantization, data, compute)
                if reporter:
                    reporter.line(quantized)
            asked = extensions.distillation
            teacher = Teacher(asked, data.contract, compute) if asked else None
            learner = Learner(
                model,
                config,
                compute,
                processes,
                compile_network=compile_network,
                extensions=extensions,
                teacher=teacher,
            )
            training = Training(config, extensions, data, learner, folder, request, init_epoch, save_every, processes)
            if state is not None:
                with foreign_told(folder.state):
                    training.restore(state)
            journal = None
            if reporter is not None:
                write_text(folder.spec, spec.show(experiment))
                write_classmap(folder.classmap, data.train.classes)
                reporter.line(f"{compute} · {_system(config, processes, data, compute)} · {_size(data, model)}")
                trackers = _trackers(loggers, experiment, config, folder, reporter)
                journal = Journal(folder, config, data.contract, reporter, trackers, training.epoch)
            return training.run(journal, resumed=resume)


def _shape_like(model: nn.Module, state: TrainState, path: Path) -> None:
    """A pruned network is as narrow as its weights; one that is trained for INT8 has the layers for it."""
    shapes = {name: tensor.shape for name, tensor in state.learner["model"].items()}
    with foreign_told(path):
        resize(model, shapes)
        quantize_like(model, shapes)


@contextmanager
def _failures_told(config: TrainConfig, *, compile_network: bool) -> Iterator[None]:
    try:
        with compiler_failures_told() if compile_network else nullcontext():
            yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            whose = "the GPU's memory"
        elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            whose = "the memory"
        else:
            raise
        raise TrtClsError(
            f"{whose} is too small for batches of {config.batch_size_per_gpu} images; expected "
            "smaller ones; lower train_config.batch_size_per_gpu and train in another folder"
        ) from error


def _trackers(
    names: Sequence[str], experiment: Experiment, config: TrainConfig, folder: Results, reporter: Reporter
) -> Loggers:
    asked = config.visualizer.wandb_config
    by_spec = ["wandb"] if asked is not None and asked.enabled else []
    # the visualizer may hold a key
    fields = {n: v for n, v in flat("", experiment).items() if not n.startswith("train_config.visualizer")}
    return Loggers(list(dict.fromkeys([*names, *by_spec])), folder.root, fields, asked, reporter)


def _system(config: TrainConfig, processes: Processes, data: TrainingData, compute: Compute) -> str:
    noun = "process" if processes.size == 1 else "processes"
    augmented = f" · images augmented on the {'GPU' if data.kernel else 'CPU'}" if compute.device.type == "cuda" else ""
    return f"trt-cls {__version__} · {processes.size} {noun} · seed {config.random_seed}{augmented}"


def _size(data: TrainingData, model: nn.Module) -> str:
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return (
        f"{len(data.train.samples)} training and {len(data.val.samples)} validation images · "
        f"{len(data.contract.classes)} classes · {total:,} parameters, {trainable:,} trainable · "
        f"{data.loader.steps_per_epoch} steps an epoch"
    )
