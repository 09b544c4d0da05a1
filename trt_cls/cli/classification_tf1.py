"""The program `classification_tf1`: TAO's commands and flags for TF1 classification, run by those of trt-cls.

A cell of a TAO notebook runs here without the launcher before it: `tao model classification_tf1 train …` becomes
`classification_tf1 train …`. tao_flags.py says what becomes of each flag.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from trt_cls import terminal
from trt_cls.cli import Invocation, exit_status, run
from trt_cls.cli.tao_flags import COMMON, OURS, PARALLEL, VERBS, Flag, markdown
from trt_cls.errors import ArtefactError, did_you_mean
from trt_cls.terminal import echo

PROGRAM = "classification_tf1"
HELP = ("-h", "--help")
Given = dict[str, Any]
"""Name of a flag → its value, None where it was not typed."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 the run failed, 2 the request is wrong."""
    state = Invocation(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _main(state), state)


def _main(state: Invocation) -> None:
    terminal.prepare()
    verb, *words = state.arguments or HELP
    if verb in HELP:
        echo(f"Usage: {PROGRAM} COMMAND …\n\nTAO's commands, run by trt-cls. COMMAND --help lists the flags.\n")
        echo("\n".join(f"  {name:24}{VERBS[name].summary.partition(':')[0]}" for name in VERBS))
    elif verb == "--markdown":
        echo(markdown(), nl=False)
    elif verb not in VERBS:
        raise click.UsageError(f'no command "{verb}"{did_you_mean(verb, list(VERBS))}; expected {", ".join(VERBS)}')
    elif {*HELP} & {*words}:
        echo(_parser(verb).format_help(), nl=False)
    else:
        given = _given(verb, words)
        if given["gpu_index"] is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(given["gpu_index"])
        line = command_line(verb, given)
        if not line:
            echo(f"{verb}: {VERBS[verb].summary}")
            return
        echo(f"$ {shlex.join(['trt-cls', *line])}", err=True)
        state.arguments = line
        run(state)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise click.UsageError(f"{self.prog}: {message}")


def _parser(verb: str) -> _Parser:
    about = f"{VERBS[verb].summary} Beside each flag is what becomes of it in trt-cls."
    parser = _Parser(prog=f"{PROGRAM} {verb}", description=about)
    for flag in _flags(verb):
        takes = _TAKES[flag.takes]
        parser.add_argument(*flag.names, dest=flag.name, required=flag.required, help=flag.meaning, **takes)
    return parser


_TAKES: dict[str, dict[str, Any]] = {
    "value": {},
    "number": {"type": int},
    "list": {"nargs": "+"},
    "switch": {"action": "store_const", "const": True},
}


def _flags(verb: str) -> tuple[Flag, ...]:
    return (*VERBS[verb].flags, *COMMON)


def _given(verb: str, words: list[str]) -> Given:
    found, unknown = _parser(verb).parse_known_args(words)
    if unknown:
        names = [name for flag in _flags(verb) for name in flag.names]
        hint = did_you_mean(unknown[0], names) or "; --help lists them, and trt-cls takes its own"
        raise click.UsageError(f'{PROGRAM} {verb}: "{unknown[0]}" is no flag of TAO\'s{hint}')
    given = vars(found)
    for flag in _flags(verb):
        if flag.action == "refused" and given[flag.name] is not None:
            raise click.UsageError(f"{'/'.join(flag.names)}: {flag.note}")
    return given


def command_line(verb: str, given: Given) -> list[str]:
    """The arguments of trt-cls that do what TAO's `verb` does with the flags `given`; empty: there is nothing to do.

    What is ignored is printed, a line each.

    Raises:
        ArtefactError: a model file is missing.
        click.UsageError: no image is named.
    """
    command = VERBS[verb].command
    if not command:
        return []
    line = [command]
    for flag in _flags(verb):
        if given[flag.name] is not None:
            line += _passed(flag, given)
    processes = max(given["num_processes"] or 0, 0) or given["gpus"] or 1
    if processes > 1 and verb in PARALLEL:
        line += ["--gpus", str(processes)]
    return [*line, *_OF_VERB[verb](given)]


def _passed(flag: Flag, given: Given) -> list[str]:
    """The arguments that a flag of TAO's becomes; changes the path of a model in `given` to the file that is used."""
    value = given[flag.name]
    if flag.action == "ignored":
        _say_ignored("/".join(flag.names), flag.note)
    elif flag.action == "model":
        given[flag.name] = value = str(_readable(_file(value)))
    elif flag.action == "output":
        given[flag.name] = value = str(_writable(_file(value), ".engine" if flag.to == "--engine" else ".safetensors"))
    if not flag.to:
        return []
    if flag.takes == "switch":
        return [flag.to]
    return [word for each in (value if flag.takes == "list" else [value]) for word in (flag.to, each)]


def _say_ignored(name: str, why: str) -> None:
    echo(f"{name} is ignored: {why}", err=True)


def _file(value: str | Path) -> Path:
    if not Path(value).name:
        raise click.UsageError(f'"{value}" is a folder; expected the name of a file')
    return Path(value)


def _readable(path: Path) -> Path:
    """`path`, or our file beside it in place of a missing one with TAO's suffix."""
    suffix = OURS.get(path.suffix)
    if suffix is None or path.exists():
        return path
    sibling = path.with_suffix(suffix)
    if not sibling.exists():
        names = [entry.name for entry in path.parent.glob(f"*{suffix}")]
        hint = did_you_mean(sibling.name, names) or "; check the path, or write it with train or export"
        raise ArtefactError(f"{path}: no such file, nor {sibling.name}; expected one of the two{hint}")
    echo(f"{path}: reading {sibling}", err=True)
    return sibling


def _writable(path: Path, suffix: str) -> Path:
    """`path` with our suffix."""
    if path.suffix == suffix:
        return path
    ours = path.with_suffix(suffix) if path.suffix in OURS else path.with_name(path.name + suffix)
    echo(f"{path}: writing {ours}", err=True)
    return ours


def _from_spec(given: Given, section: str, field: str) -> list[str]:
    """`--set` for a model file that the spec names with TAO's suffix, and that is here with ours."""
    from trt_cls.spec import load
    from trt_cls.spec.loader import read_text

    spec = given["experiment_spec"]
    text = read_text(spec)
    if not any(suffix in text for suffix in OURS):
        return []
    named = getattr(getattr(load(spec), section), field, "")
    path = _readable(Path(named))
    return [] if str(path) == named or not named else ["--set", f"{section}.{field}={path}"]


def _inference(given: Given) -> list[str]:
    source = given["image_dir"] or given["image"]
    if source is None:
        raise click.UsageError(f"{PROGRAM} inference: no image is named; name one with -i, or a folder with -d")
    results = given["results_dir"] or (source if Path(source).is_dir() else None)
    return ["-i", source, *(["-r", results] if results else [])]


def _export(given: Given) -> list[str]:
    model = Path(given["model"])
    output = _writable(_file(given["output_file"] or model.with_suffix(".onnx")), ".onnx")
    line = ["-o", str(output), *_calibration(given, 16)]
    if given["gen_ds_config"]:
        line += ["--deepstream", str(output.parent / "deepstream")]
    return line if given["engine_file"] else [*line, "--builder", "none"]


def _gen_trt_engine(given: Given) -> list[str]:
    from trt_cls.artefacts.model_file import read_contract

    model, precision = Path(given["model"]), given["data_type"]
    same = precision in (None, read_contract(model).precision)
    output = model.with_suffix(".onnx") if same else model.with_name(f"{model.stem}_{precision}.onnx")
    engine = [] if given["engine_file"] else ["--engine", str(model.with_suffix(".engine"))]
    return ["-o", str(output), *engine, *_calibration(given, 1)]


def _calibration(given: Given, batch_size: int) -> list[str]:
    """TAO's number of batches and of images in one, in batches of ours; nothing where nothing is calibrated."""
    from trt_cls.artefacts.model_file import read_contract
    from trt_cls.models.int8_ranges import CALIBRATION_BATCH

    why = "only int8 is calibrated"
    if given["data_type"] == "int8":
        own = read_contract(Path(given["model"])).precision
        why = f"{given['model']} has its ranges" if own == "int8" else ""
    if why:
        for name in ("cal_image_dir", "batches", "batch_size"):
            if given[name] is not None:
                _say_ignored(f"--{name}", why)
        return []
    line = ["--calibration-images", given["cal_image_dir"]] if given["cal_image_dir"] else []
    if given["batches"]:
        images = given["batches"] * (given["batch_size"] or batch_size)
        line += ["--calibration-batches", str(math.ceil(images / CALIBRATION_BATCH))]
    return line


_OF_VERB: dict[str, Callable[[Given], list[str]]] = {
    "train": lambda given: _from_spec(given, "train_config", "pretrained_model_path"),
    "evaluate": lambda given: [] if given["model"] else _from_spec(given, "eval_config", "model_path"),
    "prune": lambda given: [],
    "inference": _inference,
    "export": _export,
    "gen_trt_engine": _gen_trt_engine,
}
"""What no single flag says."""
