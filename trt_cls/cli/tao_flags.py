"""The table of TAO's commands and flags for TF1 classification: what `classification_tf1` does with each.

It covers TAO Toolkit (train to export), TAO Deploy (gen_trt_engine, and evaluate and inference on engines) and the
Transfer Learning Toolkit before them. The parser of `classification_tf1`, its help, docs/coming-from-tao.md, and what
`trt-cls` answers to a name of TAO's come from here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Literal

PROGRAM = "classification_tf1"
Action = Literal["flag", "model", "output", "here", "ignored", "refused"]
"""flag: passed to trt-cls; model: so too, with our file beside a missing one of TAO's; output: so too, with our suffix;
here: `classification_tf1` does what the note says; ignored: with a line; refused: an error that says what to do."""
PASSED = ("flag", "model", "output")
Takes = Literal["value", "number", "count", "switch", "list", "numbers"]
"""number: any integer; count: one from 1 on."""


@dataclass(frozen=True)
class Flag:
    """One flag of TAO's."""

    spelling: str
    """All its names, separated by spaces; the last one names it in code."""
    action: Action
    to: str = ""
    """What does the same in trt-cls: a flag, for the first three actions."""
    note: str = ""
    takes: Takes = "value"
    required: bool = False

    @property
    def names(self) -> list[str]:
        """Its names as they are typed."""
        return self.spelling.split()

    @property
    def name(self) -> str:
        """Its name in code, as `results_dir`."""
        return self.names[-1].strip("-").replace("-", "_")

    @property
    def meaning(self) -> str:
        """What becomes of it, in a line."""
        heading = {"ignored": "ignored", "refused": "refused"}.get(self.action, self.to)
        return ": ".join(part for part in (heading, self.note) if part)


@dataclass(frozen=True)
class Verb:
    """One command of TAO's."""

    command: str
    """The command of trt-cls that does it; empty: none does."""
    summary: str
    flags: tuple[Flag, ...]


OURS = {".hdf5": ".safetensors", ".h5": ".safetensors", ".tlt": ".safetensors", ".etlt": ".onnx", ".trt": ".engine"}
"""Suffix of TAO's → ours."""
LAUNCHERS = ("tao", "tlt", "tao-deploy", "tao_deploy", "model", "deploy", "classification", PROGRAM)
"""Names before a command, in TAO's cells and in older ones; they are dropped."""
OLDER = {
    "tlt-train": "train",
    "tlt-evaluate": "evaluate",
    "tlt-prune": "prune",
    "tlt-infer": "inference",
    "tlt-int8-tensorfile": "calibration_tensorfile",
    "tlt-export": "export",
}
"""Programs of the Transfer Learning Toolkit → TAO's commands."""
_CONVERTER = f"{PROGRAM} gen_trt_engine -m FILE.onnx --engine_file FILE.engine, with --data_type and --max_batch_size"
ANSWERS = {
    "tao-converter": _CONVERTER,
    "tlt-converter": _CONVERTER,
    "converter": _CONVERTER,
    "confmat": "trt-cls evaluate, which prints the confusion matrix",
    "run": "the command itself, without a container",
}
"""Other commands of TAO's → what to type instead."""
PARALLEL = ("train", "evaluate", "inference")
"""Commands that --gpus N gives to N processes."""
COMMON = (
    Flag("--gpus", "here", "--gpus", f"of {', '.join(PARALLEL)}; ignored elsewhere", "count"),
    Flag("-np --num_processes", "here", "--gpus", "-1: as many as --gpus says", "number"),
    Flag("-k --key", "ignored", note="models are not encrypted"),
    Flag("-v --verbose", "flag", "-v", takes="switch"),
    Flag("--gpu_index", "here", "CUDA_VISIBLE_DEVICES=N before the command", takes="numbers"),
    Flag("--log_file", "ignored", note="end the command with 2>&1 | tee FILE"),
    Flag("--use_amp", "ignored", note="on a GPU mixed precision is the default of train", takes="switch"),
    Flag(
        "--multi-node", "refused", note="torchrun --nnodes N -m trt_cls train on each machine does it", takes="switch"
    ),
    Flag("--mpirun-arg", "refused", note="there is no MPI; torchrun --nnodes N -m trt_cls train does it"),
)
"""Flags of every command."""
_SPEC = Flag("-e --experiment_spec_file --experiment_spec", "flag", "-e")
_NEEDS_SPEC = Flag(_SPEC.spelling, "flag", "-e", required=True)
_MODEL = Flag("-pm --pm --pretrained_model -m --model_path --model", "model", "-m", required=True)
_RESULTS = Flag("-r --results_dir", "flag", "-r")
_BATCH = Flag("-b --batch_size", "flag", "-b")
_CLASSMAP = Flag("-cm -c --classmap", "flag", "-cm", "checked against the model's own classes")
_PRECISION = Flag("--trt_precision", "ignored", note="precision comes from the model file")
_BUILDING = (
    _MODEL,
    _SPEC,
    Flag("--data_type", "flag", "--data_type", "left out: the model's own, which after train is fp32"),
    Flag("-t --export_type --trt_precision", "refused", note="type --data_type fp32, fp16 or int8"),
    Flag("--cal_image_dir", "here", "--calibration-images", "with int8; left out: the training dataset of the spec"),
    Flag("--batches", "here", "--calibration-batches", "with int8; this many batches of --batch_size images", "count"),
    Flag("--batch_size", "here", "--calibration-batches", "left out: 16 (export) or 1 (gen_trt_engine)", "count"),
    Flag("--cal_data_file", "ignored", note="calibration reads images: name --cal_image_dir DIR, or a spec with -e"),
    Flag("--cal_cache_file", "ignored", note="the ranges are in the ONNX file"),
    Flag("--cal_json_file", "ignored", note="the ranges are in the ONNX file"),
    Flag("--force_ptq", "ignored", note="int8 calibrates every network not trained for INT8", takes="switch"),
    Flag("--engine_file", "output", "--engine"),
    Flag("--min_batch_size", "flag", "--min-batch"),
    Flag("--opt_batch_size", "flag", "--opt-batch"),
    Flag("--max_batch_size", "flag", "--max-batch", "left out: 32"),
    Flag("--max_workspace_size", "ignored", note="the builder may take 2 GiB", takes="number"),
    Flag("-s --strict_type_constraints", "ignored", note="precision comes from the ONNX file", takes="switch"),
    Flag("-d --input_dims", "ignored", note="the model has them"),
    Flag("--outputs", "ignored", note="the model has one, predictions"),
    Flag("-r --results_dir", "ignored", note="everything is written beside the output"),
)
"""Flags of export and gen_trt_engine."""


def _verb(command: str, summary: str, *flags: Flag) -> Verb:
    return Verb(command, summary, flags)


VERBS: dict[str, Verb] = {
    "train": _verb(
        "train",
        "Train a network; retrain a pruned one.",
        _NEEDS_SPEC,
        Flag("-r --results_dir", "flag", "-r", required=True),
        Flag("-c --classmap", "flag", "-c"),
        Flag(
            "--init_epoch", "here", "--init-epoch", "--resume where the training in -r has come to this epoch", "count"
        ),
        Flag("--resume", "flag", "--resume", "not TAO's: continue the training in -r", "switch"),
        Flag("-m --pretrained_model", "refused", note="name it in the spec: train_config.pretrained_model_path"),
    ),
    "evaluate": _verb(
        "evaluate",
        "Evaluate a checkpoint, an ONNX file or an engine on a labeled folder.",
        _NEEDS_SPEC,
        Flag(_MODEL.spelling, "model", "-m", "left out: eval_config.model_path"),
        _RESULTS,
        Flag("-d --dataset -i --image_dir", "flag", "--dataset"),
        _BATCH,
        _CLASSMAP,
        _PRECISION,
        Flag("-l --label_dir", "ignored", note="labels are the names of the folders"),
    ),
    "prune": _verb(
        "prune",
        "Remove the weakest filters of a network.",
        _MODEL,
        Flag("-o --output_file", "output", "-o", required=True),
        Flag("-pth --pruning_threshold", "flag", "-pth"),
        Flag("-n --normalizer", "flag", "-n"),
        Flag("-eq --equalization_criterion", "flag", "-eq"),
        Flag("-pg --pruning_granularity", "flag", "-pg"),
        Flag("-nf --min_num_filters", "flag", "-nf"),
        Flag("-el --excluded_layers", "flag", "-el", takes="list"),
        _RESULTS,
    ),
    "inference": _verb(
        "infer",
        "Label an image or a folder of images.",
        _MODEL,
        Flag("-i --image", "here", "-i", "an image, or a folder"),
        Flag("-d --image_dir", "here", "-i", "a folder"),
        Flag("-r --results_dir", "here", "-r", "where result.csv goes; left out: into the folder of images"),
        _SPEC,
        _CLASSMAP,
        _PRECISION,
        _BATCH,
    ),
    "calibration_tensorfile": _verb(
        "",
        "Nothing to do: --data_type int8 reads the images of --cal_image_dir, or the training dataset of -e SPEC.",
        Flag(_SPEC.spelling, "here", note="not needed", required=True),
        Flag("-o --output", "here", note="not written"),
        Flag("-m --max_batches", "here", note="export has --batches", takes="count"),
        Flag("--use_validation_set", "here", note="export has --cal_image_dir", takes="switch"),
    ),
    "export": _verb(
        "export",
        "Write a checked ONNX file and, with --engine_file, an engine.",
        *_BUILDING,
        Flag("-o --output --output_file", "here", "-o", "the ONNX file; left out: beside the model"),
        Flag("--gen_ds_config", "here", "--deepstream DIR", "the folder deepstream beside -o", "switch"),
        Flag("--classmap_json", "ignored", note="labels.txt has the model's own classes"),
        Flag("--static_batch_size", "ignored", note="the batch size of the ONNX file is dynamic", takes="number"),
        Flag("--target_opset", "ignored", note="the ONNX file has opset 20", takes="count"),
        Flag("--backend", "ignored", note="the file is ONNX"),
        Flag("--onnx_route", "ignored", note="torch writes the ONNX file"),
        Flag("--is_byom", "refused", note='train arch: "timm/NAME", or evaluate an ONNX file', takes="switch"),
    ),
    "gen_trt_engine": _verb("export", "Build an engine from an ONNX file.", *_BUILDING),
    "info": _verb("doctor", "Show what this machine can run."),
}


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command in what follows the program's name, and its arguments; launchers before it are dropped.

    Flags may stand before the command, as in TAO; their values are neither. Without a command the first word that could
    be one, or "".
    """
    rest = list(dropwhile(LAUNCHERS.__contains__, words)) or [""]
    known = {*VERBS, *OLDER, *ANSWERS} if rest[0].startswith("-") else {rest[0]}
    flags = (*COMMON, *(flag for verb in VERBS.values() for flag in verb.flags))
    with_value = {name for flag in flags if flag.takes != "switch" for name in flag.names}
    is_value = [False, *(word in with_value for word in rest)]
    at = next((place for place, word in enumerate(rest) if word in known and not is_value[place]), 0)
    before = [word for place, word in enumerate(rest[:at]) if word not in LAUNCHERS or is_value[place]]
    name, after = rest[at], rest[at + 1 :]
    if name in OLDER and after[:1] == ["classification"]:
        del after[0]
    return OLDER.get(name, name), [*before, *after]


def instead_of_command(words: Sequence[str]) -> str:
    """What to type in trt-cls instead of `words`, whose first is no command of it; empty where TAO has none either."""
    if words[0] not in {*LAUNCHERS, *OLDER, *ANSWERS, *VERBS}:
        return ""
    name, _ = split(words)
    found = f'"{words[0]}" is TAO\'s'
    if name in ANSWERS:
        return f"{found}; expected {ANSWERS[name]}"
    if name not in VERBS:
        return f"{found} launcher; expected trt-cls COMMAND, which trt-cls --help lists, or {PROGRAM} COMMAND"
    verb = VERBS[name]
    nothing = f"it left out ({verb.summary[0].lower()}{verb.summary[1:-1]})"
    instead = f"trt-cls {verb.command} …" if verb.command else nothing
    return f"{found}; expected {instead}, or {PROGRAM} {name} …"


def instead_of_flag(command: str, words: Sequence[str], known: Collection[str], unknown: str) -> str:
    """What to type instead of the first of `words` that is a flag of TAO's and not one of `known`, those of `command`.

    Empty where there is none, or if it doesn't begin as `unknown`, the flag that click met.
    """
    verbs = [name for name, verb in VERBS.items() if verb.command == command]
    tables = [(name, True, (*VERBS[name].flags, *COMMON)) for name in verbs] or [("", True, COMMON)]
    tables += [(name, False, verb.flags) for name, verb in VERBS.items() if verbs]
    for word in (word.partition("=")[0] for word in words):
        if word in known or not word.startswith(unknown or "-"):
            continue
        for name, own, flags in tables:
            for flag in flags:
                if word in flag.names and (own or word.startswith("--")):
                    return _instead(word, flag, name, known, own=own)
    return ""


def _instead(word: str, flag: Flag, verb: str, known: Collection[str], *, own: bool) -> str:
    owner = f"{word} is TAO's" if own else f"{word} is a flag of TAO's {verb}"
    if own and flag.action == "refused":
        return f"{owner}; {flag.note}"
    left_out = f"leave it out ({flag.note})" if own and flag.action == "ignored" else "leave it out"
    usable = own and flag.to and (not flag.to.startswith("-") or flag.to.split()[0] in known)
    return f"{owner}; {f'expected {flag.to}' if usable else left_out}" + (f", or {PROGRAM} {verb} …" if verb else "")


def markdown() -> str:
    """The table as sections of Markdown, for docs/coming-from-tao.md."""
    lines = ["### Launchers and older programs", "", "| TAO | here |", "|---|---|"]
    lines += [f"| {' '.join(f'`{name}`' for name in LAUNCHERS)} | dropped before a command |"]
    lines += [f"| `{name} classification` | `{PROGRAM} {verb}` |" for name, verb in OLDER.items()]
    lines += [f"| `{name}` | answered: {what} |" for name, what in ANSWERS.items()]
    lines += ["", *_section("Flags of every command", "", COMMON)]
    for name, verb in VERBS.items():
        lines += _section(f"`{name}`", f"`trt-cls {verb.command}`: " if verb.command else "", verb.flags, verb.summary)
    return "\n".join(lines[:-1]) + "\n"


def _section(heading: str, command: str, flags: tuple[Flag, ...], summary: str = "") -> Iterator[str]:
    text = [f"{command}{summary}", ""] if summary else []
    yield from (f"### {heading}", "", *text, "| TAO | here |", "|---|---|")
    for flag in flags:
        spellings = " ".join(f"`{name}`" for name in flag.names)
        meaning = re.sub(r"(?<!\w)(--?[a-z][\w-]*)", r"`\1`", flag.meaning).replace("|", "\\|")
        yield f"| {spellings} | {meaning} |"
    yield ""
