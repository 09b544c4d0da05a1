"""Trains the network of an experiment: data, model, learner and logs are made from the request, then the loop runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from trt_cls import spec
from trt_cls.artefacts.classmap import write_classmap
from trt_cls.data.shards import Epochs
from trt_cls.data.split import split_rows
from trt_cls.distributed.processes import Processes
from trt_cls.errors import RequestError, TrtClsError
from trt_cls.files import write_csv, write_text
from trt_cls.models.int8_layers import quantize_like
from trt_cls.models.network import count_parameters, resize_layers
from trt_cls.spec.architectures import is_external
from trt_cls.spec.experiment import Experiment, TrainConfig
from trt_cls.training.compute import Compute, choose_compute, compiler_failures_reported, memory_kept, repeatable
from trt_cls.training.graphs import require_recordable
from trt_cls.training.learner import Learner, Teacher
from trt_cls.training.logs import Log
from trt_cls.training.logs.console import Reporter
from trt_cls.training.logs.files import Checkpoints, Curve, StatusFile
from trt_cls.training.logs.page import TrainingPage
from trt_cls.training.logs.trackers import TensorBoard, Trackers
from trt_cls.training.loop import Training, TrainingResult
from trt_cls.training.loss import class_weights, weights_text
from trt_cls.training.parallel import joined_to_train
from trt_cls.training.quantization import quantize_for_training
from trt_cls.training.rate_finder import RateCurve, sweep, write_page
from trt_cls.training.run_folder import RunFolder, locked_run_folder
from trt_cls.training.setup import Setup, make_model, open_setup, supported
from trt_cls.training.state import TrainState, foreign_reported, read_state, refuse_other_request, request_fields
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
    cuda_graphs: bool = False,
    loggers: Sequence[str] = (),
    order: Epochs | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Trains the network of `experiment` and writes checkpoints, curves and logs below `results`.

    One request on one machine gives the same numbers, whatever n_workers is and however often it is killed and resumed.
    The state is saved every `save_every` steps (None: every few minutes) and after each epoch. The rest is as the
    options of `trt-cls train`. Under torchrun all processes train.

    Raises:
        RequestError: the request can't be met, or does not fit what `results` holds.
        DataError: a folder, or all images of a class, can't be used.
        DeviceError: the device is not there.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP; the state is saved.
        LoaderError: a process that makes batches died or failed.
        TrtClsError: the loss is not finite, memory is too small, or the disk is full.
    """
    config = supported(experiment, init_epoch=init_epoch, resume=resume)
    stages = max(1, len(config.model_parallelism))
    with joined_to_train(device, stages) as processes, ExitStack() as stack:
        folder = RunFolder(results)
        if processes.first:
            stack.enter_context(locked_run_folder(folder, resume=resume))
        processes.wait()
        state = read_state(folder.state) if resume else None
        if state is not None:
            precision = state.request["--precision"] if precision == "auto" else precision
            compile_network = compile_network or state.request["--compile"]
            classmap = classmap or folder.classmap
            order = order or state.request.get("--order", "folder")
        compute = _compute(experiment, device, precision, stages, processes, compile_network, cuda_graphs)
        setup = open_setup(experiment, config, classmap, processes, compute, order or "shards")
        stack.callback(setup.close)
        options = {"--precision": compute.precision, "--compile": compile_network, "processes": processes.size}
        request = request_fields(experiment, options, setup.train, setup.val)
        if state is not None:
            refuse_other_request(state.request, request, folder.spec)
        reporter = (reporter or Reporter()) if processes.first else Reporter(io.StringIO())
        with memory_kept(compute), repeatable(compute), _failures_reported(config, compile_network):
            learner = _learner(setup, folder, state, reporter, compile_network, cuda_graphs)
            training = Training(setup, learner, folder, request, save_every, init_epoch)
            if state is not None:
                with foreign_reported(folder.state):
                    training.restore(state)
            if processes.first:
                training.logs = _logs(training, loggers, reporter)
            return training.run(resumed=resume)


def find_rate(
    experiment: Experiment,
    results: Path,
    *,
    classmap: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile_network: bool = False,
    cuda_graphs: bool = False,
    order: Epochs | None = None,
    reporter: Reporter | None = None,
) -> RateCurve:
    """Searches a learning rate for the training of `experiment`, and writes the curve to training.html in `results`.

    Two runs of the same request on the same machine find the same. No checkpoint and no state is left behind, so that
    the training may begin in the same folder. Under torchrun all processes search together and return the result.

    Raises: as `train`.
    """
    config = supported(experiment, init_epoch=1, resume=False)
    stages = max(1, len(config.model_parallelism))
    with joined_to_train(device, stages) as processes, ExitStack() as stack:
        folder = RunFolder(results)
        if processes.first:
            stack.enter_context(locked_run_folder(folder, resume=False))
            stack.callback(folder.weights.rmdir)
        processes.wait()
        compute = _compute(experiment, device, precision, stages, processes, compile_network, cuda_graphs)
        setup = open_setup(experiment, config, classmap, processes, compute, order or "shards")
        stack.callback(setup.close)
        reporter = (reporter or Reporter()) if processes.first else Reporter(io.StringIO())
        with memory_kept(compute), repeatable(compute), _failures_reported(config, compile_network):
            learner = _learner(setup, folder, None, reporter, compile_network, cuda_graphs)
            reporter.line(f"{compute} · {_system(setup)} · {_size(setup, learner.model)}")
            curve = sweep(learner, setup)
        if processes.first:
            write_page(folder.page, curve, setup)
        return curve


def _compute(
    experiment: Experiment, device: str, precision: str, stages: int, processes: Processes, compiled: bool, graphs: bool
) -> Compute:
    """Device and precision; options that do not go together are refused here, before images are listed."""
    compute, extensions = choose_compute(device, precision, stages), experiment.extensions
    if graphs:
        require_recordable(compute, extensions, processes, compiled=compiled)
    if compiled and extensions.progressive_resizing:
        raise RequestError(
            "--compile with extensions.progressive_resizing: torch compiles the network for each size of the images, "
            "and gives up after a few; expected one of the two; leave the other out"
        )
    if compiled and extensions.gradient_checkpointing and not is_external(experiment.model_config.arch):
        raise RequestError(
            "--compile with extensions.gradient_checkpointing: torch compiles no built-in network with it; "
            "expected one of the two; leave the other out"
        )
    return compute


def _learner(
    setup: Setup,
    folder: RunFolder,
    state: TrainState | None,
    reporter: Reporter,
    compile_network: bool,
    cuda_graphs: bool,
) -> Learner:
    """The network with its first weights, or in the shape of those of `state`, and its optimizer."""
    extensions = setup.extensions
    model = make_model(setup, reporter, resume=state is not None)
    if state is not None:
        # a pruned network is as narrow as its weights; one that is trained for INT8 has the layers for it
        shapes = {name: tensor.shape for name, tensor in state.learner["model"].items()}
        with foreign_reported(folder.state):
            resize_layers(model, shapes)
            quantize_like(model, shapes)
    elif extensions.quantization:
        reporter.line(quantize_for_training(model, extensions.quantization, setup))
    config, compute, distillation = setup.config, setup.compute, extensions.distillation
    teacher = Teacher(distillation, setup.contract, compute) if distillation else None
    weights = class_weights(extensions.class_weights, setup.train) if extensions.class_weights else None
    if weights is not None:
        reporter.line(weights_text(weights, setup.train))
    return Learner(
        model,
        config,
        compute,
        setup.processes,
        extensions,
        teacher,
        weights,
        compile_network=compile_network,
        cuda_graphs=cuda_graphs,
    )


def _logs(training: Training, loggers: Sequence[str], reporter: Reporter) -> list[Log]:
    """Writes the request of the training into its folder, and opens its logs."""
    setup, folder = training.setup, training.folder
    write_text(folder.spec, spec.show(setup.experiment))
    write_classmap(folder.classmap, setup.train.classes)
    if setup.extensions.validation_split:
        write_csv(folder.split, split_rows(setup.train, setup.val))
    reporter.line(f"{setup.compute} · {_system(setup)} · {_size(setup, training.learner.model)}")
    trackers = Trackers(loggers, setup.experiment, folder, reporter)
    status = StatusFile(folder.status, setup.config.n_epochs, training.epoch)
    boards = TensorBoard(folder.events, setup.config.visualizer, setup.contract.preprocessing, training.epoch)
    page = TrainingPage(folder, setup, lambda: training.skipped)
    return [Checkpoints(folder, setup.contract), Curve(folder.curve), page, status, boards, trackers, reporter]


@contextmanager
def _failures_reported(config: TrainConfig, compile_network: bool) -> Iterator[None]:
    try:
        with compiler_failures_reported() if compile_network else nullcontext():
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


def _system(setup: Setup) -> str:
    count = setup.processes.size
    augmented = ""
    if setup.compute.device.type == "cuda":
        augmented = f" · images augmented on the {'GPU' if setup.kernel else 'CPU'}"
    noun = "process" if count == 1 else "processes"
    return f"trt-cls {__version__} · {count} {noun} · seed {setup.config.random_seed}{augmented}"


def _size(setup: Setup, model: nn.Module) -> str:
    count = count_parameters(model)
    return (
        f"{len(setup.train.samples)} training and {len(setup.val.samples)} validation images · "
        f"{len(setup.contract.classes)} classes · {count.total:,} parameters, {count.trainable:,} trainable · "
        f"{setup.loader.steps_per_epoch} steps an epoch"
    )
