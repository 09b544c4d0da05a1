"""The program `classification_tf1`: TAO's commands and flags for TF1 classification, run by those of trt-cls.

A cell of a TAO notebook, such as `tao model classification_tf1 train …`, runs here as `classification_tf1 train …`, and
the launcher may stay before it. tao_flags.py says what becomes of each flag.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from trt_cls import terminal
from trt_cls.artefacts.model_file import MODEL_SUFFIXES, PLANS
from trt_cls.cli import Invocation, exit_status, flags_of, program, run
from trt_cls.cli.tao_flags import ANSWERS, COMMON, OURS, PARALLEL, PASSED, PROGRAM, VERBS, Flag, markdown, split
from trt_cls.errors import ArtefactError, did_you_mean
from trt_cls.terminal import echo
from trt_cls.version import __version__

HELP = ("-h", "--help")
Given = dict[str, Any]
"""Name of a flag → its value, None where it was not typed."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 the run failed, 2 the request is wrong."""
    state = Invocation(sys.argv[1:] if arguments is None else arguments)
    status = exit_status(lambda: _main(state), state)
    if arguments is None:
        gc.freeze()  # as in trt_cls.cli.main
    return status


def _main(state: Invocation) -> None:
    terminal.prepare()
    verb, words = split(state.arguments)
    if not verb or verb in HELP:
        echo(f"Usage: {PROGRAM} COMMAND …\n\nTAO's commands, run by trt-cls. COMMAND --help lists the flags.\n")
        echo("\n".join(f"  {name:24}{VERBS[name].summary.partition(':')[0]}" for name in VERBS))
    elif verb == "--markdown":
        echo(markdown(), nl=False)
    elif verb == "--version":
        echo(f"{PROGRAM}, version {__version__}")
    elif verb in ANSWERS:
        raise click.UsageError(f'"{verb}" is TAO\'s; expected {ANSWERS[verb]}')
    elif verb not in VERBS:
        raise click.UsageError(f'no command "{verb}"{did_you_mean(verb, list(VERBS))}; expected {", ".join(VERBS)}')
    elif {*HELP} & {*words}:
        echo(_parser(verb).format_help(), nl=False)
    else:
        given, unknown = _given(verb, words)
        line = command_line(verb, given)
        _answer_unknown(verb, unknown, given, line)
        if given["gpu_index"] is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = _indices(given)
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


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _devices(text: str) -> str:
    if not re.fullmatch(r"\d+(,\d+)*|(GPU|MIG)-[\w/-]+", text, re.ASCII):
        raise ValueError
    return text


_count.__name__, _devices.__name__ = "positive int", "GPU number"  # in argparse's messages
_TAKES: dict[str, dict[str, Any]] = {
    "value": {},
    "number": {"type": int},
    "count": {"type": _count},
    "list": {"nargs": "+"},
    "numbers": {"nargs": "+", "type": _devices},
    "switch": {"action": "store_const", "const": True},
}


def _flags(verb: str) -> tuple[Flag, ...]:
    return (*VERBS[verb].flags, *COMMON)


def _given(verb: str, words: list[str]) -> tuple[Given, list[str]]:
    """The flags in `words`, and the arguments that are not in the table."""
    found, unknown = _parser(verb).parse_known_args(words)
    given = vars(found)
    for flag in _flags(verb):
        if flag.action == "refused" and given[flag.name] is not None:
            raise click.UsageError(f"{'/'.join(flag.names)}: {flag.note}")
    return given, unknown


def _answer_unknown(verb: str, unknown: list[str], given: Given, line: list[str]) -> None:
    """Refuses arguments with what to type; `line` is the command without them. TAO's export ignores them."""
    command = program.get_command(click.Context(program), VERBS[verb].command)
    ours = flags_of(command) if command else set()
    names = [name for flag in _flags(verb) for name in flag.names]
    taken: list[str] = []  # by trt-cls, with their values
    ignored: list[str] = []
    last = None  # the list that the flag before a value went to
    for word in unknown:
        flag = word.partition("=")[0]
        if last is not None and not word.startswith("-"):
            last.append(word)
        elif flag in ours:
            last = taken
            taken.append(word)
        elif (hint := did_you_mean(flag, names)) or verb != "export":
            hint = hint or "; leave it out; --help lists the flags"
            raise click.UsageError(f'{PROGRAM} {verb}: "{word}" is no flag of TAO\'s{hint}')
        else:
            last = ignored
            ignored.append(word)
    if ignored:
        _say_ignored(" ".join(ignored), "TAO's export ignores what it doesn't know, too")
    if taken:
        devices = f"CUDA_VISIBLE_DEVICES={_indices(given)} " if given["gpu_index"] else ""
        whole = devices + shlex.join(["trt-cls", *line, *taken])
        raise click.UsageError(f"{taken[0]} is a flag of trt-cls, not of TAO's {verb}; expected {whole}")


def _indices(given: Given) -> str:
    return ",".join(given["gpu_index"])


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
    elif processes > 1:
        _say_ignored("--gpus" if processes == given["gpus"] else "-np/--num_processes", f"{verb} is one process")
    return [*line, *_OF_VERB[verb](given)]


def _passed(flag: Flag, given: Given) -> list[str]:
    """The arguments that a flag of TAO's becomes; changes the path of a model in `given` to the file that is used."""
    value = given[flag.name]
    if flag.action == "ignored":
        _say_ignored("/".join(flag.names), flag.note)
    elif flag.action == "model":
        given[flag.name] = value = str(_readable(_file(value)))
    elif flag.action == "output":
        suffixes = PLANS if flag.to == "--engine" else (".safetensors",)
        given[flag.name] = value = str(_writable(_file(value), *suffixes))
    if flag.action not in PASSED:
        return []
    if flag.takes == "switch":
        return [flag.to]
    return [word for each in (value if flag.takes == "list" else [value]) for word in (flag.to, each)]


def _say_ignored(name: str, why: str) -> None:
    echo(f"{name} is ignored: {why}", err=True)


def _file(value: str | Path) -> Path:
    if Path(value).is_dir() or str(value).endswith(os.sep):
        raise click.UsageError(f'"{value}" is a folder; expected the name of a file, as {Path(value) / "model"}')
    return Path(value)


def _readable(path: Path) -> Path:
    """`path`, or our file beside it in place of a missing one with TAO's suffix or none."""
    if path.exists() or path.suffix in MODEL_SUFFIXES:
        return path
    suffix = OURS.get(path.suffix)
    siblings = [path.with_suffix(suffix)] if suffix else [path.with_name(path.name + ours) for ours in MODEL_SUFFIXES]
    sibling = next((file for file in siblings if file.exists()), siblings[0])
    if not suffix and not sibling.exists():
        return path  # which trt-cls refuses
    if not sibling.exists():
        names = [entry.name for entry in path.parent.glob(f"*{suffix}")]
        hint = did_you_mean(sibling.name, names) or "; check the path, or write it with train or export"
        raise ArtefactError(f"{path}: no such file, nor {sibling.name}; expected one of the two{hint}")
    echo(f"{path}: reading {sibling}", err=True)
    return sibling


def _writable(path: Path, suffix: str, *others: str) -> Path:
    """`path` with our suffix: `suffix`, or one of `others` that it has already."""
    if path.suffix in (suffix, *others):
        return path
    ours = path.with_suffix(suffix) if path.suffix in OURS else path.with_name(path.name + suffix)
    echo(f"{path}: writing {ours}", err=True)
    return ours


def _from_spec(given: Given, section: str, field: str) -> list[str]:
    """`--set` for a model file that the spec names with TAO's suffix, and that is here with ours."""
    from trt_cls.spec import load
    from trt_cls.spec.loader import read_text

    spec = given["experiment_spec"]
    if field not in read_text(spec):
        return []
    named = Path(getattr(getattr(load(spec), section), field, ""))
    path = _readable(named) if named.suffix in OURS else named
    return [] if path == named else ["--set", f"{section}.{field}={path}"]


def _train(given: Given) -> list[str]:
    line, first = _from_spec(given, "train_config", "pretrained_model_path"), given["init_epoch"]
    if first is None:
        return line
    from trt_cls.training.run_folder import RunFolder

    folder = RunFolder(Path(given["results_dir"]))
    done = folder.curve.read_bytes().count(b"\n") - 1 if folder.curve.is_file() else 0
    if first == 1 or first != done + 1 or not folder.state.exists():
        return [*line, "--init-epoch", str(first)]
    echo(f"--init_epoch {first}: resuming the training in {folder.root}, which has done {done}", err=True)
    return line if given["resume"] else [*line, "--resume"]


def _inference(given: Given) -> list[str]:
    sources = [source for source in (given["image"], given["image_dir"]) if source is not None]
    if not sources:
        raise click.UsageError(f"{PROGRAM} inference: no image is named; name one with -i, or a folder with -d")
    results = given["results_dir"] or next((source for source in sources if Path(source).is_dir()), None)
    return [*(word for source in sources for word in ("-i", source)), *(["-r", results] if results else [])]


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
    "train": _train,
    "evaluate": lambda given: [] if given["model"] else _from_spec(given, "eval_config", "model_path"),
    "prune": lambda given: [],
    "inference": _inference,
    "export": _export,
    "gen_trt_engine": _gen_trt_engine,
    "info": lambda given: [],
}
"""What no single flag says."""

if __name__ == "__main__":
    sys.exit(main())
