"""`trt-cls import-tao`: converts a model that TAO trained into a checkpoint with a contract."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trt_cls.artefacts.classmap import read_classmap
from trt_cls.cli.options import PATH, common_options, spec_options
from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import ArtefactError, RequestError, require
from trt_cls.files import atomic, results_folder
from trt_cls.preprocessing.description import default_preprocessing_of_tao, preprocessing_of_tao
from trt_cls.spec import load
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import Experiment, ModelConfig
from trt_cls.terminal import echo

if TYPE_CHECKING:
    from trt_cls.models.tao.network import Imported

CLASSMAP = "classmap.json"
SHOWN_CLASSES = 5
OPTIONS = ("use_batch_norm", "use_bias", "use_pooling", "all_projections", "retain_head", "freeze_bn")


@click.command("import-tao")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "--output_file", type=PATH, required=True, help="Checkpoint to write.")
@spec_options(required=False)
@click.option(
    "-cm",
    "--classmap",
    type=PATH,
    help="TAO's classmap.json.  [default: the one beside MODEL or one folder up, else numbered classes]",
)
@common_options
def command(
    model: Path, output: Path, spec: Path | None, overrides: tuple[str, ...], classmap: Path | None
) -> Contract:
    """Convert a TAO .hdf5 model into a checkpoint.

    MODEL is a file that TAO's train or prune wrote, not encrypted. It does not contain the preprocessing: name the spec
    that it was trained with.
    """
    if output.suffix != ".safetensors":
        name = output.with_suffix(".safetensors")
        raise RequestError(f"-o {output}: expected a name that ends in .safetensors; use -o {name}")
    # The folders and model files that an old spec names need not be on this machine.
    experiment = load(spec, overrides=overrides, needs=("train_config",), paths=False) if spec else None
    imported = _import(model)
    config = imported.config
    if experiment and spec:
        _require_same_model(experiment.model_config, spec, config, model)
        config = replace(config, resize_interpolation_method=experiment.model_config.resize_interpolation_method)
    preprocessing = _preprocessing(config, experiment)
    contract = Contract(config, preprocessing, _classes(model, classmap, imported.module.num_classes))
    _write(output, imported, contract)
    echo("\n".join(_summary(imported, contract, model, output)))
    return contract


def _import(model: Path) -> Imported:
    require("torch", "importing a model", "train")
    from trt_cls.models.tao.hdf5 import require_readable
    from trt_cls.models.tao.network import import_network

    require_readable(model)
    return import_network(model)


def _require_same_model(asked: ModelConfig, spec: Path, found: ModelConfig, model: Path) -> None:
    fields = ["arch", "input_image_size"] + (["n_layers"] if ARCHITECTURES[found.arch].depths else [])
    for field in fields:
        wanted, own = getattr(asked, field), getattr(found, field)
        same = asked.input_shape == found.input_shape if field == "input_image_size" else wanted == own
        if not same:
            raise ArtefactError(
                f"{spec} and {model} disagree: model_config.{field} is {wanted} in the spec and {own} in the model; "
                "expected the spec that the model was trained with; name that one, or change the field with --set"
            )


def _preprocessing(config: ModelConfig, experiment: Experiment | None) -> Preprocessing:
    if experiment:
        return preprocessing_of_tao(experiment, "eval" if experiment.eval_config else "train")
    echo(
        "the file does not contain its preprocessing: assuming caffe mode with ImageNet's means, center crop and "
        "bilinear; if it was trained otherwise, name its spec with -e, and change single fields with --set",
        err=True,
    )
    return default_preprocessing_of_tao(config.input_shape)


def _classes(model: Path, classmap: Path | None, outputs: int) -> tuple[str, ...]:
    found = [path for path in (model.parent / CLASSMAP, model.parent.parent / CLASSMAP) if path.is_file()]
    source = classmap or next(iter(found), None)
    if source is None:
        echo(
            f"no {CLASSMAP} beside the model or one folder up: the classes are named 0 to {outputs - 1}; name it with "
            "--classmap",
            err=True,
        )
        return tuple(str(index) for index in range(outputs))
    classes = read_classmap(source)
    if len(classes) != outputs:
        raise ArtefactError(
            f"{source} and {model} disagree: {len(classes)} classes in the class map, {outputs} outputs of the model; "
            "expected the class map of its training; name it with --classmap"
        )
    if not classmap:
        echo(f"classes: as in {source}", err=True)
    return classes


def _write(output: Path, imported: Imported, contract: Contract) -> None:
    from trt_cls.models.checkpoint import save_checkpoint
    from trt_cls.models.tao.network import require_same_answers

    results_folder(output.parent)
    with atomic(output) as beside:
        save_checkpoint(beside, imported.module, contract)
        require_same_answers(beside, imported.module)


def _summary(imported: Imported, contract: Contract, model: Path, output: Path) -> list[str]:
    from trt_cls.models.network import count_parameters

    total = count_parameters(imported.module).total
    names = ", ".join(contract.classes[:SHOWN_CLASSES]) + (" …" if len(contract.classes) > SHOWN_CLASSES else "")
    return [
        f"imported {model}",
        f"network:       {_network(imported.config)}",
        f"parameters:    {total:,}{', pruned' if imported.pruned else ''}",
        f"classes:       {len(contract.classes)}: {names}",
        f"preprocessing: {_pixels(contract.preprocessing)}",
        f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB); loaded again, it gives the same logits",
        f"next: {shlex.join(['trt-cls', 'export', '-m', str(output), '-o', str(output.with_suffix('.onnx'))])}",
    ]


def _network(config: ModelConfig) -> str:
    depth = f"-{config.n_layers}" if ARCHITECTURES[config.arch].depths else ""
    shown = [f"{config.arch}{depth}", "×".join(map(str, config.input_shape))]
    shown += [name for name in OPTIONS if getattr(config, name)]
    if config.activation:
        shown.append(f"activation {config.activation.activation_type}")
    if config.freeze_blocks:
        shown.append(f"freeze_blocks {', '.join(map(str, config.freeze_blocks))}")
    if config.dropout:
        shown.append(f"dropout {config.dropout:g}")
    return ", ".join(shown)


def _pixels(preprocessing: Preprocessing) -> str:
    mean, std = (" ".join(f"{value:g}" for value in side) for side in (preprocessing.mean, preprocessing.std))
    crop = "center crop" if preprocessing.crop == "center" else "no crop"
    return (
        f"{preprocessing.channel_order}, (pixel / {preprocessing.divisor:g} - [{mean}]) / [{std}], {crop}, "
        f"{preprocessing.filter}"
    )
