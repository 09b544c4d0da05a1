"""`trt-cls spec`: checks a spec file, prints it with all fields, writes a first one, lists all fields."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click

from trt_cls.cli import CommandGroup
from trt_cls.cli.options import PATH, common_options, set_option
from trt_cls.errors import RequestError
from trt_cls.spec.experiment import Experiment
from trt_cls.terminal import echo
from trt_cls.text import counted


@click.group("spec", cls=CommandGroup)
def command() -> None:
    """Check, print and write spec files, list all fields."""


def _spec_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("spec", type=PATH)(set_option(function))


@command.command("check")
@_spec_argument
@click.option("--no-paths", is_flag=True, help="Do not check that the folders and files exist.")
@common_options
def check(spec: Path, overrides: tuple[str, ...], no_paths: bool) -> None:
    """Validate SPEC: print each problem with its line, encrypted files, and where TAO's results differ."""
    from trt_cls.spec.differences import differences, encrypted_files
    from trt_cls.spec.loader import experiment_from_text, read_text

    text = read_text(spec)
    for line in encrypted_files(text, overrides):
        echo(f"encrypted: {line}")
    experiment = experiment_from_text(
        text,
        str(spec),
        overrides=overrides,
        needs=("train_config",),
        files_of=() if no_paths else ("train_config", "eval_config"),
    )
    echo(f"{spec}: ok ({_summary(experiment)})")
    model, train = experiment.model_config, experiment.train_config
    met = differences(model, train, " ".join((text, *overrides))) if train else []
    echo(f"differences from TAO: {len(met)}{', see docs/differences-from-tao.md' if met else ''}")
    echo("".join(f"  {line}\n" for line in met), nl=False)


@command.command("show")
@_spec_argument
@click.option("--secrets", is_flag=True, help="Show API keys too.")
@common_options
def show(spec: Path, overrides: tuple[str, ...], secrets: bool) -> None:
    """Print SPEC with all fields, defaults included."""
    from trt_cls.spec import load
    from trt_cls.spec import show as text_of

    echo(text_of(load(spec, overrides=overrides, paths=False), secrets=secrets), nl=False)


@command.command("init")
@click.argument("folder", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("spec.txt"), show_default=True, help="Spec file to write.")
@click.option("--arch", metavar="NAME", help="Architecture, such as resnet18.  [default: by the size of the images]")
@common_options
def init(folder: Path, output: Path, arch: str | None) -> None:
    """Write a spec for FOLDER: a sub-folder of images per class, or such folders train, val and test."""
    from trt_cls.data.survey import survey
    from trt_cls.files import results_folder, write_text
    from trt_cls.gpu import visible_gpu
    from trt_cls.spec import loads
    from trt_cls.spec.starter import ENLARGED, HUB_DEFAULT, architecture, starter_text

    if output.exists() and (output.is_dir() or output.stat().st_size):
        raise RequestError(f"-o {output}: exists already; expected a new file; name another, or remove this one")
    pictures = survey(folder)
    cached = arch is None and pictures.side > ENLARGED and _weights(HUB_DEFAULT) == "here"
    chosen, depth = architecture(arch, pictures, hub=cached)
    weights = _weights(chosen)
    results = f"runs/{folder.resolve().name}"
    text = starter_text(pictures, chosen, depth, results, hub=weights is not None, gpu=visible_gpu() is not None)
    experiment = loads(text, needs=("train_config",), paths=True, name=str(output))
    results_folder(output.parent)
    write_text(output, text)
    echo("\n".join(pictures.remarks))
    echo(f"wrote {output} ({_summary(experiment)})")
    if weights == "to download":
        echo(f"train downloads pretrained weights of {chosen} once; without a network, remove pretrained_model_path")
    echo(f"next: {shlex.join(['trt-cls', 'train', '-e', str(output), '-r', results])}")
    echo(f"then: {shlex.join(['trt-cls', 'evaluate', '-e', str(output), '-r', f'{results}/evaluation'])}")


def _weights(arch: str) -> Literal["here", "to download"] | None:
    """Where pretrained weights of `arch` are, if there are any."""
    from trt_cls.spec.architectures import is_external

    if not is_external(arch) or not find_spec("torch"):
        return None
    from trt_cls.models.external import has_cached_weights, offers_weights

    return "here" if has_cached_weights(arch) else "to download" if offers_weights(arch) else None


@command.command("fields")
@click.option("--markdown", "as_markdown", is_flag=True, help="As Markdown tables.")
@common_options
def fields(as_markdown: bool) -> None:
    """List every field with its type, default, range and meaning."""
    from trt_cls.spec.reference import markdown, reference

    if as_markdown:
        echo(markdown(), nl=False)
        return
    for row in reference().values():
        default = f"default {row.default}" if row.default not in ("", "required") else row.default
        click.secho(row.path, bold=True)
        echo(f"    {'; '.join(part for part in (row.type, default, row.allowed) if part)}")
        echo(f"    {row.help}")


def _summary(experiment: Experiment) -> str:
    from trt_cls.spec.architectures import ARCHITECTURES

    model, train = experiment.model_config, experiment.train_config
    depth = model.n_layers if model.arch in ARCHITECTURES and ARCHITECTURES[model.arch].depths else ""
    parts = [f"{model.arch}{depth}", "×".join(str(size) for size in model.input_shape)]
    if train is not None:
        blocks = (experiment.extensions.optimizer or train.optimizer, train.lr_config)
        chosen = (name for block in blocks for name, value in vars(block).items() if value)
        parts += [f"{counted(train.n_epochs, 'epoch')} of batches of {train.batch_size_per_gpu}", *chosen]
    return ", ".join(parts)
